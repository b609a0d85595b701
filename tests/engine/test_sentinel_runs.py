"""The sentinel in real runs: what it measures, that it does not train, and that each action is taken and resumed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.events import CheckpointSaved, Evaluated, Finished, RunEvent, StepDone, TailMeasured, Warned
from engine.progress import TerminalProgress
from engine.setup import load_data
from engine.tail_probe import TailProbe
from tests.engine.models import tiny_model
from tests.engine.running import quick_document, quick_spec, steps_of, train_here

pytestmark = pytest.mark.usefixtures("home")

_EVALUATION = quick_document()["evaluation"]
assert isinstance(_EVALUATION, dict)
DEV: dict[str, object] = _EVALUATION | {"num_prompts": 2}
# Full-size steps along tiny gradients break the text behind the prefix within a few steps.
BREAKING = {"learning_rate": 2e-2, "warmup_steps": 0, "eps": 1e-8}


def watching(action: dict[str, object], **changes: object) -> dict[str, object]:
    return {"kind": "watch", "every_steps": 4, "num_rollouts": 2, "action": action} | changes


def tails(events: list[RunEvent]) -> list[TailMeasured]:
    return [event for event in events if isinstance(event, TailMeasured)]


def horizons(events: list[RunEvent]) -> list[int]:
    return [event.horizon for event in events if isinstance(event, StepDone)]


def told(events: list[RunEvent]) -> list[tuple[int | None, str]]:
    return [
        (event.step, event.code) for event in events if isinstance(event, Warned) if event.code.startswith("sentinel")
    ]


def test_it_measures_before_training_and_every_n_steps_without_changing_the_run(tmp_path: Path) -> None:
    plain = train_here(quick_spec(num_steps=9), tmp_path / "plain")
    events = train_here(quick_spec(num_steps=9, sentinel=watching({"kind": "warn"})), tmp_path / "watched")
    assert [(tail.step, tail.horizon, tail.num_rollouts) for tail in tails(events)] == [(0, 6, 2), (4, 6, 2), (8, 6, 2)]
    losses = [[event.metrics["loss"] for event in run if isinstance(event, StepDone)] for run in (plain, events)]
    assert losses[0] == losses[1]
    ends = [[event for event in run if isinstance(event, StepDone)][-1].flops for run in (plain, events)]
    assert ends[1].training == pytest.approx(ends[0].training)
    assert ends[1].evaluation > ends[0].evaluation


def test_a_healthy_prefix_of_8_does_not_drift_and_its_tail_is_told_beside_the_teachers(tmp_path: Path) -> None:
    spec = quick_spec(
        prefix={"kind": "constant", "tokens": 8}, num_steps=24, prompts_per_step=8, max_completion_tokens=224,
        evaluation=DEV, sentinel=watching({"kind": "stop"}, every_steps=12),
    )  # fmt: skip
    events = train_here(spec, tmp_path / "run")
    assert told(events) == []
    assert steps_of(events)[-1] == 24
    for tail in tails(events):
        assert tail.metrics["eos_rate"] == tail.teacher_metrics["eos_rate"] == 1.0
        assert tail.metrics["mean_tokens"] == tail.teacher_metrics["mean_tokens"]
        assert tail.teacher_metrics["stop_probability"] > 0.99
        assert (tail.metrics["stop_probability"] or 0) > 0.99
        assert (tail.metrics["reverse_kl_beyond"] or 0) < 0.05


@pytest.fixture(scope="module")
def probe() -> TailProbe:
    spec = quick_spec(max_completion_tokens=224, micro_batch_rollouts=2)
    teacher = tiny_model("teacher", "teacher")
    return TailProbe(spec, teacher, load_data(spec, teacher.tokenizer).train[:3], lambda: None)


def test_the_probability_of_ending_is_that_of_the_stop_token_where_the_teachers_texts_end(probe: TailProbe) -> None:
    student = tiny_model("student-late")
    expected = []
    for text in probe.teacher_texts:
        assert text.finish_reason == "eos"
        token_ids = torch.tensor([text.prompt_token_ids + text.completion_token_ids[:-1]])
        with torch.no_grad():
            logits = student.module(input_ids=token_ids).logits[0, -1].double().numpy()
        weights = np.exp(logits - logits.max())
        expected.append(weights[2] / weights.sum())
    assert probe.stop_probability(student) == pytest.approx(np.mean(expected), abs=1e-6)


def test_teacher_texts_that_do_not_end_say_nothing_about_endings() -> None:
    spec = quick_spec(max_completion_tokens=12)
    teacher = tiny_model("teacher", "teacher")
    probe = TailProbe(spec, teacher, load_data(spec, teacher.tokenizer).train[:2], lambda: None)
    assert probe.stop_probability(teacher) is None
    assert probe.teacher_metrics["eos_rate"] == 0.0


def test_the_flops_are_those_of_the_tokens_and_the_teachers_are_counted_once(tmp_path: Path) -> None:
    """24 tokens behind 9 of the prompt, no text ends: generation and two readings, at every measurement; the teacher's first."""
    events = train_here(quick_spec(num_steps=9, sentinel=watching({"kind": "warn"})), tmp_path / "run")
    first, second, third = tails(events)
    student, teacher = (tiny_model(name).shape for name in ("student-plan", "teacher"))
    each = student.prefill(9) + student.decode(9, 24) + student.forward(33, 24) + teacher.forward(33, 24)
    assert third.flops.evaluation - second.flops.evaluation == pytest.approx(2 * each)
    once = teacher.prefill(9) + teacher.decode(9, 24)
    before = [event for event in events if isinstance(event, Evaluated) and event.step == 0][-1].flops.evaluation
    assert first.flops.evaluation - before == pytest.approx(2 * (each + once))


@pytest.mark.parametrize("prompts", ["dev", "train"])
def test_a_broken_tail_is_told(tmp_path: Path, prompts: str) -> None:
    spec = quick_spec(
        prefix={"kind": "constant", "tokens": 8}, num_steps=8, max_completion_tokens=224, optimizer=BREAKING,
        evaluation=DEV, sentinel=watching({"kind": "warn"}, prompts=prompts),
    )  # fmt: skip
    events = train_here(spec, tmp_path / "run")
    codes = {code for _, code in told(events)}
    assert {"sentinel_tail_kl", "sentinel_eos_rate", "sentinel_stop_probability"} <= codes
    assert "sentinel_action" not in codes
    assert horizons(events) == [8] * 8


def test_texts_that_end_at_once_are_a_drift_of_length(tmp_path: Path) -> None:
    """Trained to stop after prompts that lack only their end, the student stops everywhere."""
    ending = " ".join(["r1", "3", "1+1", "=", "4", "4", "2-2", "=", "2", "2", "3+2", "=", "4", "#", "4"])
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(f'{{"prompt": "{ending}"}}\n')
    spec = quick_spec(
        prompts={"path": str(prompts)}, prefix={"kind": "constant", "tokens": 1}, num_steps=12, max_completion_tokens=224,
        optimizer={"learning_rate": 5e-3, "warmup_steps": 0, "eps": 1e-8}, evaluation=DEV, sentinel=watching({"kind": "stop"}),
    )  # fmt: skip
    events = train_here(spec, tmp_path / "run")
    assert "sentinel_length" in {code for _, code in told(events)}


def test_repetition_is_a_drift(tmp_path: Path) -> None:
    """The late student ends up writing one word for ever."""
    spec = quick_spec(
        student={"path": "builtin:tiny/models/student-late"}, prefix={"kind": "constant", "tokens": 8}, num_steps=40,
        max_completion_tokens=16, optimizer={"learning_rate": 0.1, "warmup_steps": 40, "eps": 1e-8}, evaluation=DEV,
        sentinel=watching({"kind": "warn"}, every_steps=20),
    )  # fmt: skip
    events = train_here(spec, tmp_path / "run")
    first, *later = tails(events)
    most = max(first.metrics["repetition"] or 0, first.teacher_metrics["repetition"] or 0) + 0.2
    above = [tail.step for tail in later if (tail.metrics["repetition"] or 0) > most]
    assert above[-1] == 40
    # At its first measurement above the limit, which is step 20 or 40 as the processor rounds.
    assert [step for step, code in told(events) if code == "sentinel_repetition"] == above[:1]


def test_it_lets_the_horizon_grow(tmp_path: Path) -> None:
    spec = quick_spec(num_steps=12, optimizer=BREAKING, sentinel=watching({"kind": "grow", "factor": 3}))
    events = train_here(spec, tmp_path / "run")
    assert horizons(events) == [6] * 4 + [18] * 4 + [24] * 4
    assert [tail.horizon for tail in tails(events)] == [6, 6, 18, 24]
    assert told(events) == [(4, "sentinel_tail_kl"), (4, "sentinel_action"), (8, "sentinel_action")]
    last = [event for event in events if isinstance(event, Evaluated)][-1]
    assert (last.step, last.horizon) == (12, 24)


def test_it_switches_anchoring_on(tmp_path: Path) -> None:
    spec = quick_spec(num_steps=10, optimizer=BREAKING, sentinel=watching({"kind": "anchor", "n": 3}))
    events = train_here(spec, tmp_path / "run")
    assert horizons(events) == [6] * 6 + [24, 6, 6, 24]
    assert (4, "sentinel_action") in told(events)


def test_it_ends_the_run_with_evaluation_checkpoint_and_report(tmp_path: Path) -> None:
    spec = quick_spec(num_steps=40, optimizer=BREAKING, sentinel=watching({"kind": "stop"}))
    events = train_here(spec, tmp_path / "run")
    assert steps_of(events) == [1, 2, 3, 4]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.step, finished.reason) == (4, "sentinel")
    assert [event.step for event in events if isinstance(event, Evaluated) and event.subject == "student"] == [4]
    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [4]


@pytest.mark.parametrize(
    "action",
    [{"kind": "grow", "factor": 2}, {"kind": "anchor", "n": 3}, {"kind": "warn"}],
    ids=["grow", "anchor", "warn"],
)
@pytest.mark.parametrize("start", [3, 4, 6])
def test_a_resumed_run_does_the_same(tmp_path: Path, action: dict[str, object], start: int) -> None:
    """From before, at and after the step of the drift: same measurements, same horizons, same weights."""
    spec = quick_spec(
        num_steps=10, optimizer=BREAKING, checkpoints={"every_steps": 1, "keep_last": 99}, sentinel=watching(action)
    )
    whole = train_here(spec, tmp_path / "run")
    folder = tmp_path / f"run/attempts/1/checkpoints/step-{start}"
    resumed = train_here(spec, tmp_path / "run", attempt=2, resume=folder)
    assert horizons(resumed) == horizons(whole)[start:]
    after = [tail for tail in tails(whole) if tail.step > start]
    assert [(t.step, t.horizon, t.metrics, t.teacher_metrics) for t in tails(resumed)] == [
        (t.step, t.horizon, t.metrics, t.teacher_metrics) for t in after
    ]
    assert [tail.flops for tail in tails(resumed)] == [tail.flops for tail in after]
    assert told(resumed) == [one for one in told(whole) if (one[0] or 0) > start]
    losses = [[event.metrics["loss"] for event in run if isinstance(event, StepDone)] for run in (whole, resumed)]
    assert losses[1] == losses[0][start:]


def test_the_terminal_shows_the_tail_beside_the_teachers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = train_here(quick_spec(num_steps=2, sentinel=watching({"kind": "warn"})), tmp_path / "run")
    with TerminalProgress(quick_spec(), enabled=True) as progress:
        progress.show(tails(events)[0])
    shown = " ".join(capsys.readouterr().err.split())
    assert "tail of 2 whole texts" in shown
    assert "EOS 0.000 (teacher 0.000)" in shown
