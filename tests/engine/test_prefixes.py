"""Schedules: tables of expected lengths, and what holds for every member of the union."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.prefixes import (
    MAX_TOKENS,
    ConstantPrefix,
    EveryNthStep,
    FullPrefix,
    LinearPrefix,
    NoAnchoring,
    PrefixSchedule,
    PrefixSignals,
    PrefixState,
)
from tests.engine.models import tiny_spec

tokens = st.integers(1, MAX_TOKENS)
steps = st.integers(0, 1_000_000)
schedules: st.SearchStrategy[ConstantPrefix | LinearPrefix | FullPrefix] = st.one_of(
    st.builds(ConstantPrefix, tokens=tokens),
    st.builds(
        LinearPrefix, start_tokens=tokens, increment_tokens=st.floats(0, MAX_TOKENS, exclude_min=True, allow_nan=False)
    ),
    st.just(FullPrefix()),
)
anchorings = st.one_of(st.just(NoAnchoring()), st.builds(EveryNthStep, n=st.integers(1, 100_000)))


def state(limit: int = 224) -> PrefixState:
    return PrefixState(max_completion_tokens=limit)


def test_the_properties_below_cover_every_member_of_the_union() -> None:
    assert set(get_args(get_args(PrefixSchedule)[0])) == {ConstantPrefix, LinearPrefix, FullPrefix}


@given(schedules, anchorings, steps, tokens)
def test_a_horizon_is_at_least_1_and_at_most_the_full_length(
    schedule: PrefixSchedule, anchoring: NoAnchoring | EveryNthStep, step: int, limit: int
) -> None:
    horizon = schedule.horizon_at(step, state(limit))
    assert isinstance(horizon, int)
    assert 1 <= horizon <= limit
    assert horizon <= anchoring.horizon_at(step, horizon, state(limit)) <= limit


@given(schedules, steps, tokens)
def test_these_schedules_never_shrink_and_need_no_memory(schedule: PrefixSchedule, step: int, limit: int) -> None:
    assert schedule.horizon_at(step, state(limit)) <= schedule.horizon_at(step + 1, state(limit))
    assert schedule.advance(state(limit), PrefixSignals(step=step)) == state(limit)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ConstantPrefix(tokens=8), [8, 8, 8, 8, 8, 8]),
        (ConstantPrefix(tokens=1), [1, 1, 1, 1, 1, 1]),
        (ConstantPrefix(tokens=4000), [224, 224, 224, 224, 224, 224]),
        (LinearPrefix(start_tokens=16, increment_tokens=8), [16, 24, 32, 40, 48, 56]),
        (LinearPrefix(start_tokens=4, increment_tokens=0.5), [4, 4, 5, 5, 6, 6]),
        (LinearPrefix(start_tokens=200, increment_tokens=10), [200, 210, 220, 224, 224, 224]),
        (FullPrefix(), [224, 224, 224, 224, 224, 224]),
    ],
    ids=str,
)
def test_lengths_of_the_first_six_steps(schedule: PrefixSchedule, expected: list[int]) -> None:
    assert [schedule.horizon_at(step, state()) for step in range(6)] == expected


def test_every_third_step_counted_from_1_runs_to_the_full_length() -> None:
    spec = tiny_spec(anchoring={"kind": "every_nth_step", "n": 3})
    assert [spec.horizon_at(step, spec.prefix_state()) for step in range(7)] == [8, 8, 224, 8, 8, 224, 8]


def test_anchoring_at_every_step_is_a_full_prefix() -> None:
    spec = tiny_spec(anchoring={"kind": "every_nth_step", "n": 1})
    assert {spec.horizon_at(step, spec.prefix_state()) for step in range(5)} == {224}
