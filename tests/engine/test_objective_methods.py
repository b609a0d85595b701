"""Every choice that experiments/methods names trains the tiny pair for a few steps and reports what it measures."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.events import StepDone
from tests.engine.running import quick_spec, train_here

METHODS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "experiments" / "methods" / "objectives.json").read_text()
)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["choice"])
def test_the_choice_trains_and_measures(method: dict[str, Any], tmp_path: Path) -> None:
    spec = quick_spec(**method["change"], num_steps=3)
    steps = [event for event in train_here(spec, tmp_path) if isinstance(event, StepDone)]
    assert len(steps) == 3
    for step in steps:
        assert set(spec.divergence.measure_names) <= step.metrics.keys()
        assert step.metrics["grad_norm"]
        if spec.projects_twice:
            assert step.metrics["divergence"] is not None
        if spec.termination_guard.kind != "none":
            assert (step.metrics["termination_guard"] or 0.0) > 0
        for name in spec.divergence.measure_names:
            assert 0.0 < (step.metrics[name] or 0.0) <= 1.0 + 1e-6


def test_the_named_tests_exist() -> None:
    root = Path(__file__).parents[2]
    for method in METHODS:
        path, _, name = method["test"].partition("::")
        assert f"def {name}(" in (root / path).read_text(), method["test"]
