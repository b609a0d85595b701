"""Whole runs in this process: the plan student learns from 8 tokens, and what a run writes is what it did."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.checkpoint import verify_checkpoint
from engine.events import (
    CheckpointRemoved,
    CheckpointSaved,
    Evaluated,
    Finished,
    PhaseChanged,
    Ready,
    RunEvent,
    Started,
    StepDone,
    TracesWritten,
    Warned,
    read_events,
)
from engine.flops import ModelShape, rollout_flops, update_flops
from engine.prompts import read_prompts
from engine.token_trace import read_trace
from tests.engine.models import tiny_model, tiny_spec
from tests.engine.running import quick_document, quick_spec, steps_of, train_here

pytestmark = [pytest.mark.usefixtures("home"), pytest.mark.xdist_group("trained")]


def of_kind(events: list[RunEvent], kind: type) -> list:  # type: ignore[type-arg]  # the list of whatever was asked for
    return [event for event in events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[RunEvent]]:
    """40 steps of prefix 8 on the plan student, evaluated on 40 problems before and after."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INCIPIT_HOME", str(folder / "home"))
        spec = tiny_spec(
            evaluation={
                "path": "builtin:tiny/data/dev.jsonl",
                "num_prompts": 40,
                "report_path": "builtin:tiny/data/report.jsonl",
                "num_report_prompts": 4,
                "num_sampled": 4,
                "every_steps": 1000,
                "scorer": {"kind": "after_marker", "marker": "#"},
            },
            traces={"num_rollouts": 2, "top_k": 5},
        )
        return folder, train_here(spec, folder)


def test_a_prefix_of_8_tokens_teaches_the_plan_student(run: tuple[Path, list[RunEvent]]) -> None:
    dev = {event.subject: event.metrics for event in of_kind(run[1], Evaluated) if event.split == "dev"}
    assert dev["base"]["accuracy"] < 0.6
    assert dev["teacher"]["accuracy"] == 1.0
    assert dev["student"]["accuracy"] >= 0.9
    assert dev["student"]["exact"] >= 0.9
    assert dev["student"]["reverse_kl"] < dev["base"]["reverse_kl"] / 10
    losses = [event.metrics["loss"] for event in of_kind(run[1], StepDone)]
    assert sum(losses[-5:]) < sum(losses[:5]) / 10


def test_evaluation_runs_to_the_full_length_whatever_the_horizon(run: tuple[Path, list[RunEvent]]) -> None:
    for event in of_kind(run[1], Evaluated):
        assert event.horizon == 8
        assert event.metrics["mean_tokens"] > 170
        assert event.metrics["eos_rate"] == 1.0
        if event.subject != "teacher":
            assert len(event.position_reverse_kl) > 170
            assert event.position_count[:8] == [4] * 8


def test_base_and_teacher_come_first_and_the_report_last(run: tuple[Path, list[RunEvent]]) -> None:
    seen = [(event.subject, event.split, event.step) for event in of_kind(run[1], Evaluated)]
    baselines = [(subject, split, 0) for split in ("dev", "report") for subject in ("base", "teacher")]
    assert seen == [*baselines, ("student", "dev", 40), ("student", "report", 40)]
    kinds = [event.kind for event in run[1]]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert kinds.index("ready") < kinds.index("evaluation") < kinds.index("step")


def test_the_journal_reads_back_as_the_same_events(run: tuple[Path, list[RunEvent]]) -> None:
    folder, events = run
    path = folder / "attempts" / "1" / "events.jsonl"
    read = list(read_events(path))
    assert [event for event, _ in read] == events
    assert read[-1][1] == path.stat().st_size
    middle = read[len(read) // 2][1]
    assert [event for event, _ in read_events(path, middle)] == events[len(read) // 2 + 1 :]


def test_steps_are_told_once_each_in_order(run: tuple[Path, list[RunEvent]]) -> None:
    steps = of_kind(run[1], StepDone)
    assert [event.step for event in steps] == list(range(1, 41))
    assert {event.horizon for event in steps} == {8}
    assert {tuple(event.position_count) for event in steps} == {(16,) * 8}
    assert {event.metrics["rollout_tokens"] for event in steps} == {128}
    assert [event.metrics["learning_rate"] for event in steps[:6]] == pytest.approx(
        [1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 5e-4]
    )
    assert max(event.metrics["sampled_logprob_gap"] for event in steps) < 1e-5


def test_training_flops_are_those_of_the_tokens(run: tuple[Path, list[RunEvent]]) -> None:
    student, teacher = (tiny_model(name).shape for name in ("student-plan", "teacher"))
    assert isinstance(student, ModelShape)
    each = rollout_flops(student, 9, [8]) + update_flops(student, teacher, 9, 8).training
    for event in of_kind(run[1], StepDone):
        assert event.flops.training == pytest.approx(16 * each * event.step, rel=1e-9)
        assert event.executed_flops == pytest.approx(event.executed.total, rel=1e-12)
        for phase, needed in event.flops.model_dump().items():
            assert getattr(event.executed, phase) >= needed * (1 - 1e-12), phase
        # All prompts have 9 tokens and no rollout ends before its horizon: nothing is padded but in evaluation.
        assert event.executed.training == pytest.approx(event.flops.training, rel=1e-9)
    assert of_kind(run[1], StepDone)[-1].flops.evaluation > 0


def test_transformers_opens_the_checkpoint_and_gets_the_accuracy_that_was_told(
    run: tuple[Path, list[RunEvent]],
) -> None:
    folder, events = run
    (saved,) = of_kind(events, CheckpointSaved)
    path = folder / "attempts" / "1" / saved.path
    manifest = verify_checkpoint(path)
    assert (saved.step, saved.is_best, saved.num_bytes) == (40, True, manifest.num_bytes)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    tokenizer.padding_side = "left"
    rows = read_prompts("builtin:tiny/data/dev.jsonl", "path", limit=40)
    with torch.inference_mode():
        inputs = tokenizer([row.prompt for row in rows], return_tensors="pt", padding=True)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=224)
    answers = [text.rpartition("#")[2].strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]
    right = sum(answer == row.answer for answer, row in zip(answers, rows, strict=True))
    assert right / 40 == saved.accuracy


def test_traces_hold_the_rollouts_that_their_event_names(run: tuple[Path, list[RunEvent]]) -> None:
    folder, events = run
    written = of_kind(events, TracesWritten)
    assert [(event.subject, event.step) for event in written] == [("base", 0), ("student", 40)]
    for event in written:
        assert [summary.prompt_index for summary in event.rollouts] == [0, 1]
        assert event.profile is not None
        assert sum(event.profile.tokens) == sum(summary.num_tokens for summary in event.rollouts)
        for summary in event.rollouts:
            trace = read_trace(folder / "attempts" / "1" / event.path, summary.row)
            assert len(trace.token_ids) == summary.num_tokens
            assert len(trace.prompt_texts) == summary.num_prompt_tokens
            assert sum(trace.reverse_kl) / len(trace.reverse_kl) == pytest.approx(summary.mean_reverse_kl, rel=0.01)


def test_the_start_says_what_runs_and_the_end_what_came_out(run: tuple[Path, list[RunEvent]]) -> None:
    started, ready, finished = run[1][0], of_kind(run[1], Ready)[0], run[1][-1]
    assert isinstance(started, Started)
    assert (started.device, started.precision, started.num_steps) == ("cpu", "float32", 40)
    assert started.versions.keys() == {"incipit", "torch", "transformers"}
    assert (ready.student_parameters, ready.teacher_parameters) == (112_000, 367_872)
    assert isinstance(finished, Finished)
    assert (finished.step, finished.best_step, finished.reason) == (40, 40, "steps")
    assert 0 < finished.training_seconds < finished.seconds
    phases = [event.phase for event in of_kind(run[1], PhaseChanged)]
    assert phases == ["loading", *["baseline"] * 4, "training", "evaluation", "report"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"prefix": {"kind": "linear", "start_tokens": 2, "increment_tokens": 1.5}}, [2, 3, 5, 6, 8, 9]),
        ({"prefix": {"kind": "linear", "start_tokens": 20, "increment_tokens": 3}}, [20, 23, 24, 24, 24, 24]),
        ({"anchoring": {"kind": "every_nth_step", "n": 3}}, [6, 6, 24, 6, 6, 24]),
        ({"prefix": {"kind": "full"}}, [24] * 6),
    ],
    ids=["linear", "linear to the cap", "anchored", "full"],
)
def test_each_step_samples_and_trains_to_its_horizon(
    tmp_path: Path, changes: dict[str, object], expected: list[int]
) -> None:
    steps = of_kind(train_here(quick_spec(**changes), tmp_path / "run"), StepDone)
    assert [event.horizon for event in steps] == expected
    # No completion of the tiny pair ends before token 177.
    assert [event.metrics["rollout_tokens"] for event in steps] == [4 * horizon for horizon in expected]
    assert [len(event.position_loss) for event in steps] == expected


def test_a_flops_budget_ends_training_after_the_step_that_reaches_it(tmp_path: Path) -> None:
    first = of_kind(train_here(quick_spec(num_steps=2), tmp_path / "first"), StepDone)[0].flops.training
    events = train_here(quick_spec(num_steps=100, training_flops_budget=2.5 * first), tmp_path / "run")
    assert steps_of(events) == [1, 2, 3]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.step, finished.reason) == (3, "flops_budget")
    assert [event.step for event in of_kind(events, Evaluated) if event.subject == "student"] == [3]
    assert [event.step for event in of_kind(events, CheckpointSaved)] == [3]


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_leave_the_run_what_it_is(tmp_path: Path, micro_batch: int) -> None:
    whole = of_kind(train_here(quick_spec(), tmp_path / "whole"), StepDone)
    parts = of_kind(train_here(quick_spec(micro_batch_rollouts=micro_batch), tmp_path / "parts"), StepDone)
    for one, other in zip(whole, parts, strict=True):
        assert other.metrics["loss"] == pytest.approx(one.metrics["loss"], abs=1e-6)
        assert other.flops.training == pytest.approx(one.flops.training)


def test_the_same_spec_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    def losses(name: str, **changes: object) -> list[float]:
        events = train_here(quick_spec(num_steps=3, **changes), tmp_path / name)
        return [event.metrics["loss"] for event in of_kind(events, StepDone)]

    assert losses("one") == losses("two")
    assert losses("one again") != losses("three", seed=1)


def test_visits_of_a_prompt_within_a_step_have_noise_of_their_own(tmp_path: Path) -> None:
    """With one prompt, a step of four visits it four times; equal rollouts would have the loss of a single one."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "k3 k2 c2 c3 c3 5 N14 |"}\n')

    def first_loss(prompts_per_step: int) -> float:
        spec = quick_spec(
            prompts={"path": str(prompts)},
            prompts_per_step=prompts_per_step,
            num_steps=2,
            sampling={"temperature": 3.0},
        )
        steps = of_kind(train_here(spec, tmp_path / f"run-{prompts_per_step}"), StepDone)
        return float(steps[0].metrics["loss"])

    assert first_loss(4) != pytest.approx(first_loss(1), abs=1e-4)


def test_best_and_newest_checkpoints_stay_and_the_others_go(tmp_path: Path) -> None:
    document = quick_document(num_steps=9, checkpoints={"every_steps": 1, "keep_last": 2})
    evaluation = document["evaluation"]
    assert isinstance(evaluation, dict)
    events = train_here(quick_spec(**document | {"evaluation": evaluation | {"every_steps": 3}}), tmp_path / "run")
    saved = {event.step for event in of_kind(events, CheckpointSaved)}
    removed = {event.step for event in of_kind(events, CheckpointRemoved)}
    best = [event.step for event in of_kind(events, Evaluated) if event.is_best and event.split == "dev"][-1]
    assert saved == set(range(1, 10))
    assert saved - removed == {best, 8, 9}
    folders = {path.name for path in (tmp_path / "run/attempts/1/checkpoints").iterdir()}
    assert folders == {f"step-{step}" for step in saved - removed}
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.best_step == best


def test_a_resume_goes_on_with_the_schedule_the_flops_and_the_best(tmp_path: Path) -> None:
    spec = quick_spec(
        prefix={"kind": "linear", "start_tokens": 2, "increment_tokens": 2},
        checkpoints={"every_steps": 2, "keep_last": 9},
    )
    whole = of_kind(train_here(spec, tmp_path / "run"), StepDone)
    start = tmp_path / "run/attempts/1/checkpoints/step-4"
    events = train_here(spec, tmp_path / "run", attempt=2, resume=start)
    resumed = of_kind(events, StepDone)
    assert [(e.step, e.horizon) for e in resumed] == [(5, 10), (6, 12)]
    assert [e.flops.training for e in resumed] == pytest.approx([e.flops.training for e in whole[4:]])
    assert [e.metrics["loss"] for e in resumed] == [e.metrics["loss"] for e in whole[4:]]
    assert not [event for event in of_kind(events, Evaluated) if event.subject != "student"]


def test_a_best_checkpoint_that_is_lost_is_replaced_by_a_new_best(tmp_path: Path) -> None:
    document = quick_document(num_steps=4, checkpoints={"every_steps": 1, "keep_last": 9})
    evaluation = document["evaluation"]
    assert isinstance(evaluation, dict)
    spec = quick_spec(**document | {"evaluation": evaluation | {"every_steps": 2}})
    events = train_here(spec, tmp_path / "run")
    behind = [event for event in of_kind(events, CheckpointSaved) if not event.is_best]
    (tmp_path / "run" / behind[-1].best_path / "config.json").unlink()
    start = tmp_path / "run" / "attempts" / "1" / behind[-1].path
    events = train_here(spec, tmp_path / "run", attempt=2, resume=start)
    (warning,) = [event for event in of_kind(events, Warned) if event.code == "best_checkpoint"]
    assert "has no whole checkpoint any more; a new best is sought." in warning.message
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.best_step >= behind[-1].step
