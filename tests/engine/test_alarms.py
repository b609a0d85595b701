"""Each alarm fires in a real run that goes wrong in its way, and a healthy run is silent."""

import json
from pathlib import Path

import pytest

from engine.events import Evaluated, RunEvent, Warned
from engine.health import ADVICE
from engine.locations import resolve
from engine.progress import TerminalProgress
from tests.engine.running import quick_document, quick_spec, steps_of, train_here

pytestmark = pytest.mark.usefixtures("home")

_EVALUATION = quick_document()["evaluation"]
assert isinstance(_EVALUATION, dict)
DEV: dict[str, object] = _EVALUATION


def warnings_of(events: list[RunEvent]) -> list[Warned]:
    return [event for event in events if isinstance(event, Warned)]


def adam(learning_rate: float, warmup_steps: int = 0) -> dict[str, object]:
    """With a small epsilon Adam takes full-size steps along tiny gradients: the way to break a student fast."""
    return {"learning_rate": learning_rate, "warmup_steps": warmup_steps, "eps": 1e-8}


@pytest.mark.parametrize(
    ("prefix", "num_steps"),
    [
        pytest.param({"kind": "constant", "tokens": 8}, 60, id="prefix 8"),
        pytest.param({"kind": "full"}, 16, id="full", marks=pytest.mark.full),
    ],
)
def test_a_healthy_run_is_silent(tmp_path: Path, prefix: dict[str, object], num_steps: int) -> None:
    """The demo's two main arms: the plan student learns, and no alarm is raised."""
    spec = quick_spec(
        prefix=prefix,
        num_steps=num_steps,
        max_completion_tokens=224,
        prompts_per_step=16,
        evaluation=DEV | {"num_prompts": 8, "num_sampled": 4, "every_steps": 12},
        optimizer={"learning_rate": 5e-4, "warmup_steps": 5, "eps": 1e-4},
    )
    events = train_here(spec, tmp_path / "run")
    assert warnings_of(events) == []
    assert len(steps_of(events)) == num_steps


def test_a_learning_rate_that_grows_too_high_is_a_spike_of_loss_and_gradient(tmp_path: Path) -> None:
    """The late student agrees with the teacher in its first words until the warm-up reaches steps that break it."""
    spec = quick_spec(
        student={"path": "builtin:tiny/models/student-late"}, prefix={"kind": "constant", "tokens": 8}, num_steps=30,
        optimizer=adam(3e-3, 30),
    )  # fmt: skip
    raised = warnings_of(train_here(spec, tmp_path / "run"))
    codes = [warning.code for warning in raised]
    assert "alarm_kl_spike" in codes
    assert "alarm_gradient_spike" in codes
    for warning in raised:
        assert warning.value is not None
        assert warning.limit is not None
        if warning.code != "alarm_overlap_mass":
            assert warning.value >= warning.limit
        assert f"Step {warning.step}" in warning.message
        assert warning.advice == ADVICE[warning.code]


def test_a_student_that_writes_one_word_for_ever_is_a_collapse_of_entropy(tmp_path: Path) -> None:
    spec = quick_spec(
        student={"path": "builtin:tiny/models/student-late"}, prefix={"kind": "constant", "tokens": 8}, num_steps=70,
        max_completion_tokens=16, optimizer=adam(0.2, 40), health={"kl_spike_nats": 100, "gradient_spike_factor": 1000},
    )  # fmt: skip
    (collapse, *_) = warnings_of(train_here(spec, tmp_path / "run"))
    assert collapse.code == "alarm_entropy_collapse"


def test_prompts_that_end_at_once_are_a_collapse_of_length(tmp_path: Path) -> None:
    """Trained on texts that lack only their end, the student learns to end every text: it stops before its first word."""
    rows = [json.loads(line) for line in Path(resolve("builtin:tiny/data/dev.jsonl")).read_text().splitlines()[8:40]]
    prompts = tmp_path / "prompts.jsonl"
    endings = [" ".join(row["completion"].split()[-20:]) for row in rows]
    prompts.write_text("".join(json.dumps({"prompt": ending}) + "\n" for ending in endings))
    spec = quick_spec(
        prompts={"path": str(prompts)}, prefix={"kind": "constant", "tokens": 1}, max_completion_tokens=224,
        num_steps=15, optimizer=adam(5e-3), evaluation=DEV | {"every_steps": 15},
    )  # fmt: skip
    raised = {warning.code: warning for warning in warnings_of(train_here(spec, tmp_path / "run"))}
    collapse = raised["alarm_length_collapse"]
    assert collapse.value is not None
    assert collapse.value < 5
    assert "alarm_cap_hits" not in raised  # it does end


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> list[RunEvent]:
    """15 steps at a hundred times the good learning rate: the student writes to the cap, whatever it is asked."""
    folder = tmp_path_factory.mktemp("broken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INCIPIT_HOME", str(folder / "home"))
        spec = quick_spec(
            prefix={"kind": "constant", "tokens": 8}, max_completion_tokens=240, num_steps=20, optimizer=adam(5e-2),
            evaluation=DEV | {"every_steps": 5}, health={"max_length_factor": 1.1},
        )  # fmt: skip
        return train_here(spec, folder / "run")


@pytest.mark.xdist_group("broken")
@pytest.mark.parametrize("code", ["alarm_length_inflation", "alarm_cap_hits", "alarm_repetition", "alarm_overlap_mass"])
def test_a_destroyed_tail_raises_its_alarms_once(broken: list[RunEvent], code: str) -> None:
    (alarm,) = [warning for warning in warnings_of(broken) if warning.code == code]
    assert 10 <= (alarm.step or 0) <= 20


@pytest.mark.xdist_group("broken")
def test_overlap_mass_is_that_of_the_evaluation(broken: list[RunEvent]) -> None:
    (alarm,) = [warning for warning in warnings_of(broken) if warning.code == "alarm_overlap_mass"]
    measured = {
        e.step: e.metrics["overlap_mass"] for e in broken if isinstance(e, Evaluated) and e.subject != "teacher"
    }
    assert alarm.value == measured[alarm.step or 0]
    assert alarm.limit == pytest.approx(0.8 * max(value for value in measured.values() if value is not None))


def test_a_resumed_run_raises_the_same_alarms(tmp_path: Path) -> None:
    """The means, the references and the open episodes are in the checkpoint."""
    spec = quick_spec(
        student={"path": "builtin:tiny/models/student-late"}, prefix={"kind": "constant", "tokens": 8}, num_steps=30,
        optimizer=adam(3e-3, 30), checkpoints={"every_steps": 5, "keep_last": 99},
        evaluation=DEV | {"every_steps": 10}, health={"min_overlap_share": 0.99},
    )  # fmt: skip
    whole = warnings_of(train_here(spec, tmp_path / "run"))
    assert {"alarm_kl_spike", "alarm_overlap_mass"} <= {warning.code for warning in whole}
    for step in (5, 15, 25):
        start = tmp_path / f"run/attempts/1/checkpoints/step-{step}"
        resumed = warnings_of(train_here(spec, tmp_path / "run", attempt=1 + step, resume=start))
        expected = [one for one in whole if (one.step or 0) > step]
        assert [(one.code, one.message) for one in resumed] == [(one.code, one.message) for one in expected]


def test_the_terminal_shows_an_alarm_with_its_advice(
    broken: list[RunEvent], capsys: pytest.CaptureFixture[str]
) -> None:
    (alarm, *_) = warnings_of(broken)
    with TerminalProgress(quick_spec(), enabled=True) as progress:
        progress.show(alarm)
    shown = " ".join(capsys.readouterr().err.split())
    assert " ".join(alarm.message.split()) in shown
    assert alarm.advice in shown
