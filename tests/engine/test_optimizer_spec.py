"""Learning rates by step, as values of the spec."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.findings import findings_of
from engine.optimizer_spec import CosineDecay, OptimizerSpec
from engine.spec import RunSpec
from tests.engine.models import tiny_document


def rates(num_steps: int, **values: Any) -> list[float]:
    spec = OptimizerSpec(**{"learning_rate": 1.0} | values)
    return [spec.learning_rate_at(step, num_steps) for step in range(num_steps)]


@pytest.mark.parametrize(
    ("warmup", "decay", "expected"),
    [
        (0, 0.0, [1.0] * 8),
        (4, 0.0, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (2, 0.5, [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        (0, 1.0, [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
    ],
)
def test_learning_rates_of_eight_steps(warmup: int, decay: float, expected: list[float]) -> None:
    assert rates(8, warmup_steps=warmup, decay_fraction=decay) == pytest.approx(expected)


def test_no_rate_exceeds_the_peak_or_falls_to_zero_before_the_end() -> None:
    found = rates(50, learning_rate=0.3, warmup_steps=7, decay_fraction=0.9)
    assert 0 < min(found) <= max(found) <= 0.3


def test_a_cosine_rises_to_the_peak_and_falls_along_half_a_wave() -> None:
    found = rates(6, warmup_steps=2, schedule=CosineDecay())
    half = 1 / math.sqrt(2)
    assert found == pytest.approx([0.5, 1, 1, (1 + half) / 2, 0.5, (1 - half) / 2])


@given(st.integers(1, 200), st.integers(0, 200), st.floats(0, 1), st.floats(1e-6, 1, exclude_min=True))
def test_a_cosine_stays_between_its_smallest_share_and_the_peak(
    num_steps: int, warmup: int, min_share: float, peak: float
) -> None:
    warmup = min(warmup, num_steps)
    found = rates(num_steps, learning_rate=peak, warmup_steps=warmup, schedule=CosineDecay(min_share=min_share))
    behind = found[max(warmup - 1, 0) :]
    assert all(min_share * peak * (1 - 1e-12) <= rate <= peak * (1 + 1e-12) for rate in behind)
    assert behind == sorted(behind, reverse=True)
    assert found[0] == pytest.approx(peak / warmup if warmup else peak)


def test_two_decays_at_once_are_refused_at_the_flat_one() -> None:
    document = tiny_document(optimizer={"schedule": {"kind": "cosine"}, "decay_fraction": 0.5})
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(document)
    (finding,) = findings_of(caught.value, document)
    assert finding.field == "optimizer.decay_fraction"
    assert finding.message == (
        "optimizer.decay_fraction is 0.5 but optimizer.schedule is cosine, which falls by itself; "
        "set decay_fraction to 0 or schedule to constant_with_decay."
    )
