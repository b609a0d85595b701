"""Anchors: which rollouts run to the full length, and that the others' tokens do not notice."""

import math
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.anchoring import Anchoring, EveryNthStep, FractionOfBatch, NoAnchoring
from engine.events import Evaluated, StepDone
from engine.loss_region import WholeRegion
from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from tests.engine.models import random_model, tiny_spec
from tests.engine.running import quick_spec, train_here

MODEL = random_model(0)
anchorings: st.SearchStrategy[Anchoring] = st.one_of(
    st.just(NoAnchoring()),
    st.builds(EveryNthStep, n=st.integers(1, 100_000)),
    st.builds(FractionOfBatch, share=st.floats(1e-6, 1, exclude_max=True)),
)


def test_the_properties_below_cover_every_member_of_the_union() -> None:
    assert set(get_args(get_args(Anchoring)[0])) == {NoAnchoring, EveryNthStep, FractionOfBatch}


@given(anchorings, st.integers(0, 10_000), st.integers(1, 64))
def test_the_number_of_anchors_is_that_of_the_anchored_prompts(
    anchoring: Anchoring, step: int, num_prompts: int
) -> None:
    anchored = anchoring.anchored_at(step, num_prompts)
    assert len(anchored) == num_prompts
    assert sum(anchored) == anchoring.num_anchored(step, num_prompts)
    assert anchored == anchoring.anchored_at(step, num_prompts)


@given(st.floats(0.001, 0.999), st.integers(1, 64), st.integers(1, 200))
def test_a_fraction_is_kept_over_the_run_and_within_one_in_every_step(
    fraction: float, num_prompts: int, num_steps: int
) -> None:
    counts = [FractionOfBatch(share=fraction).num_anchored(step, num_prompts) for step in range(num_steps)]
    assert sum(counts) == math.floor(fraction * (num_prompts * num_steps))
    assert all(abs(count - fraction * num_prompts) <= 1 + 1e-9 for count in counts)


def test_an_eighth_of_batches_of_4_is_one_prompt_every_second_step() -> None:
    eighth = FractionOfBatch(share=0.125)
    assert [eighth.anchored_at(step, 4) for step in range(4)] == [
        [False] * 4, [False, False, False, True], [False] * 4, [False, False, False, True],
    ]  # fmt: skip


def test_every_third_step_counted_from_1_runs_to_the_full_length() -> None:
    spec = tiny_spec(anchoring={"kind": "every_nth_step", "n": 3})
    assert [spec.horizon_at(step, spec.prefix_state()) for step in range(7)] == [8, 8, 224, 8, 8, 224, 8]


def test_anchoring_at_every_step_is_a_full_prefix() -> None:
    spec = tiny_spec(anchoring={"kind": "every_nth_step", "n": 1})
    assert {spec.horizon_at(step, spec.prefix_state()) for step in range(5)} == {224}


def test_a_fraction_lengthens_some_rollouts_and_leaves_the_horizon_of_the_step() -> None:
    spec = tiny_spec(
        prompts_per_step=4,
        anchoring={"kind": "fraction", "share": 0.25},
        loss_region={"kind": "window", "start": 2, "end": 6},
    )
    assert spec.horizons_at(5, spec.prefix_state()) == [6, 6, 6, 224]
    assert spec.horizon_at(5, spec.prefix_state()) == 6
    assert spec.regions_at(5) == [spec.loss_region] * 3 + [WholeRegion()]


def requests(limits: list[int | None], num_rollouts: int = 1) -> list[RolloutRequest]:
    return [
        RolloutRequest(i, [1, *range(3, 3 + (5 * i) % 7)], num_rollouts, 1, limit) for i, limit in enumerate(limits)
    ]


def sample(limits: list[int | None], horizon: int, num_rollouts: int = 1) -> list[Rollout]:
    return Sampler(MODEL, 3, 1.0).sample(requests(limits, num_rollouts), horizon)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.none() | st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 24), st.integers(1, 2))
def test_a_rows_tokens_do_not_depend_on_its_limit_or_on_the_others(
    limits: list[int | None], horizon: int, num_rollouts: int
) -> None:
    whole = sample([None] * len(limits), horizon, num_rollouts)
    limited = sample(limits, horizon, num_rollouts)
    for i, (free, cut) in enumerate(zip(whole, limited, strict=True)):
        limit = min(limits[i // num_rollouts] or horizon, horizon)
        assert cut.completion_token_ids == free.completion_token_ids[:limit]
        assert cut.completion_logprobs == pytest.approx(free.completion_logprobs[:limit], abs=1e-9)
        is_whole = len(free.completion_token_ids) <= limit
        assert cut.finish_reason == (free.finish_reason if is_whole else "length")


def test_rows_that_reach_their_own_limit_leave_the_batch() -> None:
    sampler = Sampler(MODEL, 3, 1.0)
    asked = requests([2, None, 5, 2, None])
    rollouts = sampler.sample(asked, 30)
    width = max(len(request.prompt_token_ids) for request in asked)
    assert sampler.executed_tokens == 5 * width + sum(len(r.completion_token_ids) - 1 for r in rollouts)


def test_more_rows_than_a_batch_holds_are_decoded_with_rows_of_their_own_limit() -> None:
    calls = 0

    def on_token() -> None:
        nonlocal calls
        calls += 1

    limits: list[int | None] = [None if i % 16 == 0 else 2 for i in range(256)]
    found = Sampler(MODEL, 3, 1.0, on_token).sample(requests(limits), 40)
    assert [rollout.prompt_index for rollout in found] == list(range(256))
    assert calls <= 1 + 39, "one of the two decode batches stops at two tokens"


@pytest.mark.usefixtures("home")
def test_anchored_rollouts_of_a_batch_are_trained_whole_and_the_rest_on_the_prefix(tmp_path: Path) -> None:
    spec = quick_spec(anchoring={"kind": "fraction", "share": 0.25}, num_steps=2)
    events = train_here(spec, tmp_path / "run")
    for event in events:
        if isinstance(event, StepDone):
            assert event.horizon == 6
            assert event.position_count == [4] * 6 + [1] * 18
            assert event.metrics["rollout_tokens"] == 3 * 6 + 24
        if isinstance(event, Evaluated):
            assert event.horizon == 6
