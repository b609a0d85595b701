"""Stretches of steps against asking at every step, for every schedule and anchoring."""

import time
from collections import Counter
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.estimate import estimate, model_of
from backend.step_costs import Batch, StepCosts, horizons
from engine.adapter_spec import NoAdapter
from engine.anchoring import Anchoring, EveryNthStep, FractionOfBatch, NoAnchoring
from engine.flops import FlopLedger
from engine.memory import longest_horizon
from engine.prefix_state import PrefixState
from engine.prefixes import PrefixSchedule
from engine.spec import RunSpec
from engine.stretches import stretches
from tests.engine.running import quick_document

_TOKENS = st.integers(1, 60)
_STEPS = st.integers(1, 40)
_SCHEDULES: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "constant": st.fixed_dictionaries({"tokens": _TOKENS}),
    "ratio": st.fixed_dictionaries({"share": st.floats(0.01, 1)}),
    "full": st.just({}),
    "linear": st.fixed_dictionaries({"start_tokens": _TOKENS, "increment_tokens": st.floats(0.01, 9), "cap_tokens": st.integers(60, 100)}),
    "staircase": st.fixed_dictionaries({"start_tokens": _TOKENS, "increment_tokens": _TOKENS, "every_steps": _STEPS}),
    "cosine": st.fixed_dictionaries({"start_tokens": _TOKENS, "end_tokens": _TOKENS, "over_steps": _STEPS}),
    "stages": st.fixed_dictionaries(
        {"stages": st.lists(st.fixed_dictionaries({"steps": _STEPS, "tokens": _TOKENS}), min_size=1, max_size=6)}
    ),
    "plateau": st.fixed_dictionaries({"start_tokens": _TOKENS, "patience_steps": _STEPS}),
    "divergence_share": st.fixed_dictionaries({"start_tokens": _TOKENS, "patience_steps": _STEPS}),
    "validation": st.fixed_dictionaries({"start_tokens": _TOKENS}),
}  # fmt: skip
_ANCHORINGS = st.one_of(
    st.just(NoAnchoring()),
    st.builds(EveryNthStep, n=st.integers(1, 30)),
    st.builds(FractionOfBatch, share=st.floats(0.01, 0.99)),
)


def test_every_kind_is_tried() -> None:
    assert set(_SCHEDULES) == {kind.model_fields["kind"].default for kind in get_args(get_args(PrefixSchedule)[0])}
    assert {NoAnchoring, EveryNthStep, FractionOfBatch} == set(get_args(get_args(Anchoring)[0]))


@pytest.mark.parametrize("kind", _SCHEDULES)
@settings(max_examples=30)
@given(data=st.data(), num_steps=st.integers(1, 150))
def test_stretches_hold_the_value_of_every_step(kind: str, data: st.DataObject, num_steps: int) -> None:
    spec = RunSpec.model_validate(
        quick_document(max_completion_tokens=100, prefix={"kind": kind, **data.draw(_SCHEDULES[kind])})
    )
    state = PrefixState(max_completion_tokens=50)
    for value_at in (
        lambda step: spec.prefix.horizon_at(step, state),
        lambda step: spec.prefix.longest_at(step, state, 7),
    ):
        found = list(stretches(value_at, num_steps, spec.prefix.parts()))
        assert [one.value for one in found for _ in range(one.start, one.end)] == [
            value_at(step) for step in range(num_steps)
        ]
        assert [one.start for one in found] == [0, *(one.end for one in found[:-1])]


@given(anchoring=_ANCHORINGS, start=st.integers(0, 60), length=st.integers(0, 60), num_prompts=st.integers(1, 20))
def test_anchored_steps_are_counted_like_one_by_one(anchoring: Any, start: int, length: int, num_prompts: int) -> None:
    counted = Counter(anchoring.num_anchored(step, num_prompts) for step in range(start, start + length))
    assert {
        key: count for key, count in anchoring.counts(start, start + length, num_prompts).items() if count
    } == counted


@pytest.mark.parametrize("kind", _SCHEDULES)
@settings(max_examples=15)
@given(data=st.data(), num_steps=st.integers(3, 60), share=st.floats(0, 1.2), anchoring=_ANCHORINGS)
def test_costs_and_budget_are_those_of_adding_up_step_by_step(
    kind: str, data: st.DataObject, num_steps: int, share: float, anchoring: Any
) -> None:
    document = quick_document(
        max_completion_tokens=100, num_steps=num_steps,
        prefix={"kind": kind, **data.draw(_SCHEDULES[kind])},
    )  # fmt: skip
    spec = RunSpec.model_validate(document).model_copy(update={"anchoring": anchoring})
    student, teacher = (
        model_of(getattr(spec, name), f"{name}.path", NoAdapter()).shape for name in ("student", "teacher")
    )
    costs, state = StepCosts(spec, student, teacher, 9), spec.prefix_state()
    each = [
        costs[
            Batch(spec.prefix_horizon_at(step, state), spec.anchoring.num_anchored(step, spec.prompts_per_step))
        ].training
        for step in range(num_steps)
    ]
    shortest, _ = horizons(spec)
    assert costs.total(shortest, num_steps).training == pytest.approx(sum(each), rel=1e-12)
    assert costs.total(shortest, num_steps // 2).training == pytest.approx(sum(each[: num_steps // 2]), rel=1e-12)
    budget = max(share * sum(each), 1.0)
    limited = StepCosts(spec.model_copy(update={"training_flops_budget": budget}), student, teacher, 9)
    ended = limited.steps_within_budget(shortest, FlopLedger())
    assert ended == num_steps or sum(each[:ended]) >= budget * (1 - 1e-12)
    assert sum(each[: ended - 1]) < budget * (1 + 1e-12)


@pytest.mark.parametrize("kind", ["ratio", "linear", "plateau"])
def test_a_run_of_a_million_steps_is_estimated_at_once(kind: str) -> None:
    """An API that anyone with a token may ask a hundred times a second; it took 6 to 11 s for each."""
    spec = RunSpec.model_validate(
        quick_document(
            num_steps=1_000_000,
            prefix={"kind": kind},
            anchoring={"kind": "fraction", "share": 0.3},
            training_flops_budget=1e29,
        )
    )
    began = time.process_time()
    found = estimate(spec, [])
    assert longest_horizon(spec) <= spec.max_completion_tokens
    assert time.process_time() - began < 1.0
    shorter = estimate(spec.model_copy(update={"num_steps": 1_000}), [])
    assert found.flops.training > 900 * shorter.flops.training
