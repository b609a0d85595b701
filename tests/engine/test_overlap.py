"""Overlap: one step off-policy, exactly that, and resumed to the bit."""

import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load

from engine.checkpoint import load_trainer_state
from engine.collect import StepRollouts, collect_rollouts
from engine.events import CheckpointSaved, RunEvent, StepDone, Warned
from engine.exit_codes import DONE
from engine.findings import findings_of
from engine.flops import FlopLedger
from engine.language_model import LanguageModel
from engine.memory_plan import MemoryPlan
from engine.overlap import Overlap
from engine.setup import load_data, load_models
from engine.spec import RunSpec
from engine.student import Student
from tests.engine.models import fresh_random_model, random_model
from tests.engine.running import EngineProcess, events_of, quick_document, quick_spec, steps_of, train_here

pytestmark = pytest.mark.usefixtures("home")
# Large updates: students one step apart write differently.
LARGE = {"learning_rate": 0.02, "warmup_steps": 1, "eps": 1e-4}
GROWING = {"kind": "linear", "start_tokens": 3, "increment_tokens": 1}


def final_weights(folder: Path, step: int) -> bytes:
    (found,) = folder.glob(f"attempts/*/checkpoints/step-{step}")
    return (found / "model.safetensors").read_bytes()


def trained_one_after_the_other(spec: RunSpec) -> Student:
    """The student of a run whose steps are sampled one update early, all in one thread."""
    model, teacher = load_models(spec, torch.device("cpu"), "float32")
    student, data = Student(model, spec, MemoryPlan.stated(spec)), load_data(spec, model.tokenizer)

    def collected(step: int) -> StepRollouts:
        horizons = spec.horizons_at(step, spec.prefix_state())
        return collect_rollouts(
            spec, student.model, teacher, data.train, step=step, horizons=horizons, on_token=lambda: None
        )

    now = collected(0)
    for step in range(spec.num_steps):
        ahead = collected(step + 1)
        student.update(now.rollouts, teacher, step)
        now = ahead
    return student


def test_a_step_trains_on_what_the_student_before_the_last_update_wrote(tmp_path: Path) -> None:
    spec = quick_spec(overlap=True, num_steps=5, prefix=GROWING, optimizer=LARGE)
    events = train_here(spec, tmp_path / "run")
    expected = trained_one_after_the_other(spec).model.state_dict()
    trained = load(final_weights(tmp_path / "run", 5))
    assert trained.keys() <= expected.keys()
    for name, weight in trained.items():
        assert torch.equal(weight, expected[name]), name
    train_here(spec.model_copy(update={"overlap": False}), tmp_path / "on-policy")
    assert final_weights(tmp_path / "on-policy", 5) != final_weights(tmp_path / "run", 5)
    assert "one step off-policy" in next(e.message for e in events if isinstance(e, Warned) and e.code == "overlap")


def test_overlap_costs_what_it_costs_without(tmp_path: Path) -> None:
    def steps(events: list[RunEvent]) -> list[StepDone]:
        return [event for event in events if isinstance(event, StepDone)]

    # A text has one token here, so both runs sample and train on equally many.
    short = quick_spec(num_steps=5, prefix={"kind": "constant", "tokens": 1}, optimizer=LARGE)
    runs = [steps(train_here(short.model_copy(update={"overlap": on}), tmp_path / str(on))) for on in (False, True)]
    assert runs[0][-1].flops.training == runs[1][-1].flops.training
    # What is sampled ahead is counted when it is sampled.
    assert runs[1][0].flops.rollout == 2 * runs[0][0].flops.rollout
    assert runs[1][-2].flops.rollout == runs[1][-1].flops.rollout


def test_a_killed_run_resumes_to_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    document = quick_document(num_steps=9, overlap=True, prefix=GROWING, checkpoints={"every_steps": 2, "keep_last": 3})
    whole = EngineProcess(tmp_path / "whole", document)
    killed = EngineProcess(tmp_path / "killed", document)
    kill_at = random.randrange(3, 9)
    killed.wait_for(lambda events: len(steps_of(events)) >= kill_at)
    killed.send(signal.SIGKILL)
    assert killed.exit_code() == -signal.SIGKILL
    resumed = EngineProcess(tmp_path / "killed", document, "--attempt", "2", "--resume", "newest")
    assert whole.exit_code() == resumed.exit_code() == DONE, resumed.log
    assert steps_of(events_of(tmp_path / "killed", 2))[0] > 1, "it went on from a checkpoint"
    assert final_weights(tmp_path / "whole", 9) == final_weights(tmp_path / "killed", 9), kill_at


def test_a_stop_keeps_what_was_sampled_ahead(tmp_path: Path) -> None:
    document = quick_document(num_steps=3000, overlap=True)
    stopped = EngineProcess(tmp_path / "run", document)
    stopped.wait_for(lambda events: len(steps_of(events)) >= 2)
    stopped.send(signal.SIGTERM)
    assert stopped.exit_code() != DONE
    saved = [event for event in events_of(tmp_path / "run") if isinstance(event, CheckpointSaved)][-1]
    state = load_trainer_state(tmp_path / "run" / "attempts" / "1" / saved.path)
    assert state.step == steps_of(events_of(tmp_path / "run"))[-1]
    assert state.ahead is not None
    assert len(state.ahead.rollouts) == 4


def test_the_copy_has_the_weights_of_before_whatever_the_work_does() -> None:
    model = fresh_random_model()
    overlap = Overlap(model)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    is_changed = threading.Event()
    nothing = StepRollouts([], FlopLedger(), FlopLedger(), {})

    def work() -> int:
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.zero_()
        is_changed.set()
        return 7

    def collect(student: LanguageModel, _: object) -> StepRollouts:
        assert is_changed.wait(60)
        found = student.module.state_dict()
        assert all(torch.equal(found[name], value) for name, value in before.items())
        assert any(student.head.weight is parameter for parameter in student.module.parameters())
        return nothing

    assert overlap.beside(work, collect) == (7, nothing)


def test_sampling_is_given_up_when_the_update_fails() -> None:
    overlap = Overlap(random_model())
    has_ended = threading.Event()

    def collect(_: object, on_token: Callable[[], None]) -> StepRollouts:
        try:
            while True:
                on_token()
        finally:
            has_ended.set()

    def work() -> None:
        raise RuntimeError("no update")

    with pytest.raises(RuntimeError, match="no update"):
        overlap.beside(work, collect)
    assert has_ended.wait(60)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"divergence": {"kind": "policy_gradient"}}, "policy_gradient"),
        ({"adapter": {"kind": "lora", "rank": 4, "alpha": 8}}, "adapter.kind is 'lora'"),
        ({"prefix": {"kind": "plateau", "start_tokens": 2, "increment_tokens": 2}}, "prefix.kind is 'plateau'"),
        ({"sentinel": {"kind": "watch", "num_rollouts": 1, "action": {"kind": "grow"}}}, "sentinel.action is grow"),
    ],
)
def test_what_needs_the_update_first_is_refused(changes: dict[str, object], says: str) -> None:
    document = quick_document(overlap=True, **changes)
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(document)
    (finding,) = findings_of(caught.value, document)
    assert finding.field == "overlap"
    assert says in finding.message
    assert "set overlap to false" in finding.message
    RunSpec.model_validate(document | {"overlap": False})
