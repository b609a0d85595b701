"""Schedules that follow the step alone: tables of expected lengths; and what holds for every member of the union."""

import copy
import math
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.adaptive_prefixes import DivergenceSharePrefix, PlateauPrefix, ValidationPrefix
from engine.frozen import Frozen
from engine.prefix_state import MAX_TOKENS, PrefixSignals, PrefixState
from engine.prefixes import (
    ConstantPrefix,
    CosinePrefix,
    FullPrefix,
    LinearPrefix,
    PrefixSchedule,
    RatioPrefix,
    Stage,
    StagesPrefix,
    StaircasePrefix,
)
from tests.engine.models import tiny_document
from tests.engine.test_spec import findings

tokens = st.integers(1, MAX_TOKENS)
few = st.integers(1, 40)
caps = st.none() | tokens
shares = st.floats(0, 1)
steps = st.integers(0, 1_000_000)
adaptive: dict[str, st.SearchStrategy[object]] = {"start_tokens": few, "increment_tokens": few, "cap_tokens": caps}
smoothing = st.floats(0, 0.99)
MEMBERS: dict[type[Frozen], st.SearchStrategy[PrefixSchedule]] = {
    ConstantPrefix: st.builds(ConstantPrefix, tokens=tokens),
    RatioPrefix: st.builds(RatioPrefix, share=st.floats(0, 1, exclude_min=True)),
    FullPrefix: st.just(FullPrefix()),
    LinearPrefix: st.builds(
        LinearPrefix, start_tokens=tokens, increment_tokens=st.floats(0, MAX_TOKENS, exclude_min=True), cap_tokens=caps
    ),
    StaircasePrefix: st.builds(
        StaircasePrefix, start_tokens=tokens, increment_tokens=few, every_steps=few, cap_tokens=caps
    ),
    CosinePrefix: st.builds(CosinePrefix, start_tokens=tokens, end_tokens=tokens, over_steps=few),
    StagesPrefix: st.builds(
        StagesPrefix, stages=st.lists(st.builds(Stage, steps=few, tokens=tokens), min_size=1, max_size=5)
    ),
    PlateauPrefix: st.builds(
        PlateauPrefix, patience_steps=st.integers(1, 4), min_improvement=shares, min_reach_rate=shares,
        smoothing=smoothing, **adaptive,
    ),
    DivergenceSharePrefix: st.builds(
        DivergenceSharePrefix, patience_steps=st.integers(1, 4), min_share=shares, floor_nats=shares,
        inner_fraction=st.floats(0.01, 0.99), smoothing=smoothing, **adaptive,
    ),
    ValidationPrefix: st.builds(
        ValidationPrefix, patience_evaluations=st.integers(1, 3), min_improvement=shares, **adaptive
    ),
}  # fmt: skip
schedules = st.one_of(*MEMBERS.values())


def state(limit: int = 224) -> PrefixState:
    return PrefixState(max_completion_tokens=limit)


def test_the_properties_below_cover_every_member_of_the_union() -> None:
    assert set(get_args(get_args(PrefixSchedule)[0])) == set(MEMBERS)


@given(schedules, steps, tokens)
def test_a_horizon_is_at_least_1_and_at_most_cap_and_full_length(
    schedule: PrefixSchedule, step: int, limit: int
) -> None:
    horizon = schedule.horizon_at(step, state(limit))
    assert isinstance(horizon, int)
    assert 1 <= schedule.shortest(state(limit)) <= horizon <= limit
    assert horizon <= (getattr(schedule, "cap_tokens", None) or limit)


signals_of_steps = st.lists(
    st.tuples(
        st.lists(st.tuples(st.floats(0, 20), st.integers(0, 4)), min_size=0, max_size=60), shares, st.floats(-5, 5)
    ),
    max_size=30,
)


@given(schedules, st.integers(1, 300), signals_of_steps, st.integers(1, 4))
@example(PlateauPrefix(), 224, [([(5e-324, 1)], 1.0, 0.0), ([(20.0, 1)], 1.0, 0.0)], 1)
def test_whatever_training_shows_a_schedule_stays_in_its_preview_and_remembers_in_json(
    schedule: PrefixSchedule, limit: int, shown: list[tuple[list[tuple[float, int]], float, float]], every: int
) -> None:
    here, past = state(limit), [schedule.horizon_at(0, state(limit))]
    for step, (positions, reached, score) in enumerate(shown):
        horizon = schedule.horizon_at(step, here)
        assert schedule.shortest(state(limit)) <= horizon <= schedule.longest_at(step, state(limit), every) <= limit
        assert horizon <= (getattr(schedule, "cap_tokens", None) or limit)
        signals = [
            PrefixSignals(
                step=step,
                horizon=horizon,
                position_loss=tuple(loss if count else 0.0 for loss, count in positions[:horizon]),
                position_count=tuple(count for _, count in positions[:horizon]),
                reach_rate=reached,
            )
        ]
        if (step + 1) % every == 0:
            signals.append(PrefixSignals(step=step, score=score))
        for signal in signals:
            before = copy.deepcopy(here)
            after = schedule.advance(here, signal)
            assert here == before, "advance changes nothing"
            assert after == schedule.advance(here, signal), "and depends on nothing else"
            here = PrefixState.model_validate_json(after.model_dump_json())
            assert here == after
        past.append(schedule.horizon_at(step + 1, here))
        # The horizon of every past step can still be told: `inside` and `beyond` of an earlier best student need it.
        assert [schedule.horizon_at(at, here) for at in range(step + 2)] == past


def test_schedules_without_signals_stay_where_they_are_so_that_an_estimate_can_run_them() -> None:
    for schedule in (PlateauPrefix(), DivergenceSharePrefix(), ValidationPrefix(), LinearPrefix()):
        assert schedule.advance(state(), PrefixSignals(step=0)) == state()


def test_a_state_of_an_earlier_version_still_loads() -> None:
    assert PrefixState.model_validate_json('{"max_completion_tokens": 224}') == state()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (ConstantPrefix(tokens=8), [8, 8, 8, 8, 8, 8]),
        (ConstantPrefix(tokens=1), [1, 1, 1, 1, 1, 1]),
        (ConstantPrefix(tokens=4000), [224, 224, 224, 224, 224, 224]),
        (LinearPrefix(start_tokens=16, increment_tokens=8), [16, 24, 32, 40, 48, 56]),
        (LinearPrefix(start_tokens=4, increment_tokens=0.5), [4, 4, 5, 5, 6, 6]),
        (LinearPrefix(start_tokens=200, increment_tokens=10), [200, 210, 220, 224, 224, 224]),
        (LinearPrefix(start_tokens=16, increment_tokens=8, cap_tokens=30), [16, 24, 30, 30, 30, 30]),
        (FullPrefix(), [224, 224, 224, 224, 224, 224]),
        (RatioPrefix(share=0.25), [56, 56, 56, 56, 56, 56]),
        (RatioPrefix(share=0.001), [1, 1, 1, 1, 1, 1]),
        (RatioPrefix(share=1.0), [224, 224, 224, 224, 224, 224]),
        (StaircasePrefix(start_tokens=16, increment_tokens=8, every_steps=2), [16, 16, 24, 24, 32, 32]),
        (StaircasePrefix(start_tokens=200, increment_tokens=100, every_steps=3), [200, 200, 200, 224, 224, 224]),
        (StaircasePrefix(start_tokens=8, increment_tokens=8, every_steps=1, cap_tokens=20), [8, 16, 20, 20, 20, 20]),
        (CosinePrefix(start_tokens=10, end_tokens=50, over_steps=4), [10, 16, 30, 44, 50, 50]),
        (CosinePrefix(start_tokens=50, end_tokens=10, over_steps=4), [50, 44, 30, 16, 10, 10]),
        (CosinePrefix(start_tokens=100, end_tokens=400, over_steps=1), [100, 224, 224, 224, 224, 224]),
        (
            StagesPrefix(stages=(Stage(steps=1, tokens=8), Stage(steps=2, tokens=300), Stage(steps=1, tokens=4))),
            [8, 224, 224, 4, 4, 4],
        ),
    ],
    ids=str,
)
def test_lengths_of_the_first_six_steps(schedule: PrefixSchedule, expected: list[int]) -> None:
    assert [schedule.horizon_at(step, state()) for step in range(6)] == expected


@given(few, few, few, st.integers(0, 2000))
def test_the_staircase_is_the_papers_formula(start: int, increment: int, every: int, step: int) -> None:
    """POPD, arXiv 2605.31490: H_k = min(T, H_0 + ΔH·floor(k/Δk))."""
    found = StaircasePrefix(start_tokens=start, increment_tokens=increment, every_steps=every).horizon_at(step, state())
    assert found == min(224, start + increment * math.floor(step / every))


@pytest.mark.parametrize(
    ("prefix", "field", "sentence"),
    [
        (
            {"kind": "cosine", "end_tokens": 300},
            "prefix.end_tokens",
            "prefix.end_tokens is 300 but max_completion_tokens is 224; end shorter or raise max_completion_tokens.",
        ),
        (
            {"kind": "staircase", "cap_tokens": 300},
            "prefix.cap_tokens",
            "prefix.cap_tokens is 300 but max_completion_tokens is 224; lower the cap or raise max_completion_tokens.",
        ),
        (
            {"kind": "plateau", "start_tokens": 32, "cap_tokens": 16},
            "prefix.start_tokens",
            "prefix.start_tokens is 32 but prefix.cap_tokens is 16; start shorter or raise the cap.",
        ),
        (
            {"kind": "stages", "stages": [{"steps": 1, "tokens": 8}, {"steps": 1, "tokens": 300}]},
            "prefix.stages.1.tokens",
            "prefix.stages.1.tokens is 300 but max_completion_tokens is 224; shorten the stage or raise max_completion_tokens.",
        ),
        ({"kind": "ratio", "share": 1.5}, "prefix.share", "prefix.share is 1.5 but must be at most 1.0; lower it."),
    ],
)
def test_a_schedule_that_does_not_fit_is_one_sentence_at_its_field(
    prefix: dict[str, object], field: str, sentence: str
) -> None:
    found = findings(tiny_document(prefix=prefix))
    assert [(finding.field, finding.message) for finding in found] == [(field, sentence)]


def test_a_window_must_lie_before_the_shortest_stage_ends() -> None:
    stages = {"kind": "stages", "stages": [{"steps": 1, "tokens": 64}, {"steps": 1, "tokens": 8}]}
    found = findings(tiny_document(prefix=stages, loss_region={"kind": "window", "start": 8, "end": 16}))
    assert found[0].message.startswith("loss_region.start is 8 but the prefix has only 8 tokens at its shortest")
