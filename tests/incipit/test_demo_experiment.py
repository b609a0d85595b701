"""The demo's experiment: every arm is a valid spec, and the budgeted control gets exactly prefix 8's FLOPs."""

from pathlib import Path

import pytest

from backend.expansion import planned_runs
from engine.control import Control
from engine.events import RunEvent, StepDone
from engine.journal import Journal
from engine.locations import resolve
from engine.spec import RunSpec
from engine.train import train
from incipit.demo_experiment import demo_experiment, fixed_horizon_flops


def test_the_demo_has_the_arms_and_controls_that_make_a_saving_honest() -> None:
    arms = {planned.variant: planned.spec for planned in planned_runs(demo_experiment("tiny-demo"))}
    full, prefix = arms["full"], arms["prefix 8"]
    assert full.num_steps == 240
    assert full.prefix.kind == "full"
    assert arms["anchored"].anchoring.kind == "every_nth_step"
    assert arms["full, batch 1"].prompts_per_step == 1
    assert arms["full, prefix 8's FLOPs"].training_flops_budget == fixed_horizon_flops(prefix)
    assert arms["late flaw, prefix 8"].student.path.endswith("student-late")


def test_the_real_comparison_is_valid() -> None:
    arms = [planned.spec for planned in planned_runs(demo_experiment("smollm2-products"))]
    assert [arm.prefix.kind for arm in arms] == ["full", "constant", "constant"]


@pytest.mark.parametrize("path", sorted(Path(resolve("builtin:")).glob("*.json")), ids=lambda path: path.stem)
def test_ready_specs_are_valid(path: Path) -> None:
    RunSpec.model_validate_json(path.read_text())


def test_the_budget_equals_what_a_run_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCIPIT_HOME", str(tmp_path / "home"))
    prefix = next(p.spec for p in planned_runs(demo_experiment("tiny-demo")) if p.variant == "prefix 8")
    small = prefix.evaluation.model_copy(update={"num_prompts": 1, "num_sampled": 1, "report_path": None})
    spec = prefix.model_copy(update={"num_steps": 3, "evaluation": small})
    seen: list[RunEvent] = []
    with Journal(tmp_path / "attempts" / "1" / "events.jsonl", seen.append) as journal:
        train(spec, tmp_path, attempt=1, journal=journal, control=Control())
    recorded = [event.flops.training for event in seen if isinstance(event, StepDone)]
    assert recorded[-1] == pytest.approx(fixed_horizon_flops(spec), rel=1e-12)
