"""From events.jsonl to rows, on both databases: each step once, whoever died when."""

import random
from pathlib import Path

import pytest
from sqlalchemy import func, select

from backend.database import Database
from backend.folder_store import FolderStore
from backend.queries.claims import Claim, Ending, LeaseLost, end_attempt, reap
from backend.queries.wishes import ask_to_retry
from backend.records import Attempt, Checkpoint, Evaluation, Event, Metric, PositionCurve, Rollout, StepProfile
from engine.events import (
    CheckpointRemoved,
    Failed,
    Finished,
    PhaseChanged,
    StepDone,
    TailMeasured,
)
from engine.flops import FlopLedger
from tests.worker.runs import claim, queue_runs, recorded_steps, run_row, set_columns, short_spec, write_events
from tests.worker.sample_events import (
    TIME,
    VERDICTS,
    checkpoint_event,
    evaluation_event,
    start_events,
    step_event,
    traces_event,
)
from worker.endings import failed
from worker.recorder import Recorder, UnreadableEvents
from worker.resume import resume_checkpoint


@pytest.fixture
def run_folder(home: Path, database: Database) -> Path:
    """The folder of the only run, which is queued."""
    return home / "runs" / queue_runs(database, short_spec())[0]


@pytest.fixture
def claimed(database: Database, run_folder: Path) -> Claim:  # noqa: ARG001  # it queues the run
    """That run, claimed for its first attempt."""
    return claim(database)


def _record_all(recorder: Recorder) -> None:
    while recorder.advance():
        pass


def _claimed_again(database: Database, lost: Claim) -> Claim:
    set_columns(database, lost.run_id, lease_until=None)
    with database.write() as session:
        assert reap(session, lambda owner: False) == [lost.run_id]
    return claim(database)


def counted_steps() -> list[StepDone]:
    """Two steps that tell how many tokens they sampled and trained on."""
    tokens = {"rollout_tokens": 12.0, "supervised_tokens": 6.0}
    steps = [step_event(1, 0.75), step_event(2, 0.5)]
    return [step.model_copy(update={"metrics": step.metrics | tokens}) for step in steps]


def test_an_event_becomes_the_rows_that_readers_ask_for(database: Database, claimed: Claim, run_folder: Path) -> None:
    events = [
        *start_events(1), PhaseChanged(time=TIME, phase="training"), *counted_steps(),
        evaluation_event(2, 0.5, is_best=True), traces_event(2), checkpoint_event(run_folder, 1, 2, is_best=True),
        evaluation_event(2, 0.4, is_best=True, split="report"),
    ]  # fmt: skip
    write_events(run_folder, 1, events)
    _record_all(Recorder(database, claimed, run_folder))
    run = run_row(database, claimed.run_id)
    assert (run.state, run.phase, run.last_step, run.best_accuracy, run.report_accuracy) == (
        "running", "training", 2, 0.5, 0.4,
    )  # fmt: skip
    assert (run.training_flops, run.executed_flops, run.training_seconds) == (20.0, 40.0, 4.0)
    assert run.ready_at is not None
    with database.read() as session:
        losses = session.scalars(select(Metric.value).where(Metric.key == "loss").order_by(Metric.step)).all()
        assert losses == [0.75, 0.5]
        assert session.scalars(select(Metric.value).where(Metric.key == "grad_norm")).all() == [None, None]
        assert set(session.scalars(select(Metric.key))) == {
            "loss", "grad_norm", "horizon", "training_flops", "executed_flops", "seconds.total", "rollout_tokens", "supervised_tokens",
        }  # fmt: skip
        evaluations = session.scalars(select(Evaluation).order_by(Evaluation.split)).all()
        assert [(e.split, e.is_best, e.training_seconds) for e in evaluations] == [
            ("dev", True, 4.0),
            ("report", True, 4.0),
        ]
        assert [e.verdicts for e in evaluations] == [VERDICTS, VERDICTS]
        assert [(e.sampled_tokens, e.trained_tokens) for e in evaluations] == [(24.0, 12.0)] * 2
        curves = session.scalars(select(PositionCurve).order_by(PositionCurve.source, PositionCurve.step)).all()
        assert [(c.source, c.step, c.split, c.mean) for c in curves][-2:] == [
            ("training", 1, "train", [1.0, 0.5]), ("training", 2, "train", [1.0, 0.5]),
        ]  # fmt: skip
        assert session.scalars(select(Rollout.completion)).all() == ["m3 1+1"]
        profile = session.scalars(select(StepProfile)).one()
        assert (profile.step, profile.fence, profile.subject, profile.num_tokens) == (2, 1, "student", 2)
        assert (profile.grid["mean"]["reverse_kl"], profile.token_types) == ([0.1, 0.1], [[5, "m3", 2, 0.2]])
        checkpoint = session.scalars(select(Checkpoint)).one()
        assert (checkpoint.step, checkpoint.is_best, checkpoint.removed_at) == (2, True, None)
        assert [file["name"] for file in checkpoint.files] == [
            "model.safetensors",
            "tokenizer.json",
            "trainer/state.json",
        ]
        history = session.scalars(select(Event.payload).where(Event.kind == "traces")).one()
        assert set(history) == {"step", "subject", "horizon", "path", "top_k"}
        kinds = session.scalars(select(Event.kind).order_by(Event.seq)).all()
        assert kinds == [
            "state",
            "state",
            "started",
            "state",
            "ready",
            "phase",
            "evaluation",
            "traces",
            "checkpoint",
            "evaluation",
        ]


def test_what_the_sentinel_measured_becomes_metrics_beside_the_teachers(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    def tail(step: int, eos_rate: float) -> TailMeasured:
        return TailMeasured(
            time=TIME, step=step, horizon=4, num_rollouts=2, metrics={"eos_rate": eos_rate, "reverse_kl_beyond": None},
            teacher_metrics={"eos_rate": 1.0}, flops=FlopLedger(rollout=1.0, evaluation=7.0 + step), seconds=0.5,
        )  # fmt: skip

    write_events(run_folder, 1, [*start_events(1), tail(0, 0.9), step_event(1), tail(1, 0.4), tail(1, 0.4)])
    _record_all(Recorder(database, claimed, run_folder))
    with database.read() as session:
        rows = session.execute(
            select(Metric.key, Metric.step, Metric.value)
            .where(Metric.key.startswith("sentinel"))
            .order_by(Metric.step, Metric.key)
        ).all()
        (first, *_) = session.scalars(select(Event).where(Event.kind == "sentinel").order_by(Event.seq)).all()
    assert [tuple(row) for row in rows] == [
        ("sentinel_eos_rate", 0, 0.9), ("sentinel_reverse_kl_beyond", 0, None), ("sentinel_teacher_eos_rate", 0, 1.0),
        ("sentinel_eos_rate", 1, 0.4), ("sentinel_reverse_kl_beyond", 1, None), ("sentinel_teacher_eos_rate", 1, 1.0),
    ]  # fmt: skip
    assert first.payload["teacher_metrics"] == {"eos_rate": 1.0}
    assert run_row(database, claimed.run_id).flops == FlopLedger(rollout=1.0, evaluation=8.0)


def test_the_offset_moves_with_the_rows_and_half_a_line_waits(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    path = write_events(run_folder, 1, [*start_events(1), step_event(1)])
    complete = path.stat().st_size
    second = step_event(2).model_dump_json() + "\n"
    with path.open("a") as file:
        file.write(second[:40])
    recorder = Recorder(database, claimed, run_folder)
    _record_all(recorder)
    with database.read() as session:
        assert session.get_one(Attempt, (claimed.run_id, 1)).event_offset == complete
    with path.open("a") as file:
        file.write(second[40:])
    _record_all(recorder)
    assert recorded_steps(database, claimed.run_id) == [1, 2]


def test_nothing_is_recorded_twice(database: Database, claimed: Claim, run_folder: Path) -> None:
    write_events(run_folder, 1, [*start_events(1), step_event(1)])
    _record_all(Recorder(database, claimed, run_folder))
    with pytest.raises(LeaseLost):
        Recorder(database, claimed, run_folder).advance()
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Event).where(Event.kind == "started")) == 1


def test_a_line_that_is_no_event_is_refused_and_keeps_what_was_before(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    path = write_events(run_folder, 1, [*start_events(1), step_event(1)])
    recorder = Recorder(database, claimed, run_folder)
    _record_all(recorder)
    with path.open("a") as file:
        file.write('{"kind": "step", "loss": NaN}\n')
    with pytest.raises(UnreadableEvents, match="behind byte"):
        recorder.advance()
    assert recorded_steps(database, claimed.run_id) == [1]


def test_a_zombie_records_nothing(database: Database, claimed: Claim, run_folder: Path) -> None:
    zombie = Recorder(database, claimed, run_folder)
    write_events(run_folder, 1, [*start_events(1), step_event(1)])
    _claimed_again(database, claimed)
    with pytest.raises(LeaseLost):
        zombie.advance()
    assert recorded_steps(database, claimed.run_id) == []


def test_a_resumed_attempt_replaces_what_came_after_its_checkpoint(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    first = [
        *start_events(1), step_event(1, 0.9), checkpoint_event(run_folder, 1, 1),
        step_event(2, 0.8), evaluation_event(2, 0.9, is_best=True),
        traces_event(2, "lost"), step_event(3, 0.7),
    ]  # fmt: skip
    write_events(run_folder, 1, first)
    _record_all(Recorder(database, claimed, run_folder))
    again = _claimed_again(database, claimed)
    write_events(run_folder, again.fence, [*start_events(again.fence, resumed_from_step=1), step_event(2, 0.2)])
    _record_all(Recorder(database, again, run_folder))
    with database.read() as session:
        rows = session.execute(
            select(Metric.step, Metric.value).where(Metric.key == "loss").order_by(Metric.step)
        ).all()
        assert [tuple(row) for row in rows] == [(1, 0.9), (2, 0.2)]
        for table in (Evaluation, Rollout, StepProfile):
            assert session.scalar(select(func.count()).select_from(table)) == 0
        assert session.scalars(select(Checkpoint.step).where(Checkpoint.removed_at.is_(None))).all() == [1]
    run = run_row(database, claimed.run_id)
    assert (run.last_step, run.training_seconds, run.best_accuracy) == (2, 4.0, None)


def test_a_new_attempt_first_records_what_the_lost_one_left_unrecorded(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    write_events(run_folder, 1, [*start_events(1), step_event(1)])
    _record_all(Recorder(database, claimed, run_folder))
    finished = Finished(time=TIME, step=2, best_step=2, reason="steps", seconds=1, training_seconds=1)
    write_events(run_folder, 1, [step_event(2), checkpoint_event(run_folder, 1, 2), finished])
    again = _claimed_again(database, claimed)
    assert Recorder(database, again, run_folder).catch_up() == finished
    assert recorded_steps(database, claimed.run_id) == [1, 2]
    assert resume_checkpoint(database, again, FolderStore(run_folder.parent), lambda: None) == Path(
        "attempts/1/checkpoints/step-2"
    )


@pytest.mark.parametrize("from_scratch", [False, True])
def test_a_run_that_was_retried_is_not_failed_again_by_what_a_lost_engine_said_before(
    database: Database, claimed: Claim, run_folder: Path, from_scratch: bool
) -> None:
    failure = Failed(time=TIME, failure="bad_data", message="Line 3 is no JSON.")
    write_events(run_folder, 1, [*start_events(1), step_event(1), checkpoint_event(run_folder, 1, 1)])
    _record_all(Recorder(database, claimed, run_folder))
    write_events(run_folder, 1, [failure])
    again = _claimed_again(database, claimed)
    assert Recorder(database, again, run_folder).catch_up() == failure
    with database.write() as session:
        end_attempt(session, again, failed(failure))
        ask_to_retry(session, claimed.run_id, from_scratch=from_scratch)
    assert Recorder(database, claim(database), run_folder).catch_up() is None


def test_what_a_lost_engine_said_does_not_count_for_a_run_that_begins_again_from_its_first_step(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    finished = Finished(time=TIME, step=1, best_step=1, reason="steps", seconds=1, training_seconds=1)
    write_events(run_folder, 1, [*start_events(1), step_event(1), finished])
    with database.write() as session:
        end_attempt(session, claimed, Ending("cancelled", "Cancelled as asked.", has_unrecorded=True))
        ask_to_retry(session, claimed.run_id, from_scratch=True)
    assert Recorder(database, claim(database), run_folder).catch_up() is None


def test_progress_resets_the_count_of_attempts(database: Database, claimed: Claim, run_folder: Path) -> None:
    again = _claimed_again(database, claimed)
    assert again.attempt == 2
    write_events(run_folder, again.fence, [*start_events(again.fence), checkpoint_event(run_folder, again.fence, 1)])
    _record_all(Recorder(database, again, run_folder))
    set_columns(database, again.run_id, lease_until=None)
    with database.write() as session:
        reap(session, lambda owner: False)
    assert claim(database).attempt == 2


def test_a_checkpoint_that_was_dropped_before_it_was_recorded_is_not_offered(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    gone = checkpoint_event(run_folder, 1, 2)
    (run_folder / "attempts/1/checkpoints/step-2/manifest.json").unlink()
    write_events(run_folder, 1, [*start_events(1), gone, CheckpointRemoved(time=TIME, step=2, path=gone.path)])
    _record_all(Recorder(database, claimed, run_folder))
    assert resume_checkpoint(database, claimed, FolderStore(run_folder.parent), lambda: None) is None


def test_text_of_a_model_with_a_nul_character_is_stored(database: Database, claimed: Claim, run_folder: Path) -> None:
    write_events(run_folder, 1, [*start_events(1), traces_event(1, "a\x00b ‮ <script>")])
    _record_all(Recorder(database, claimed, run_folder))
    with database.read() as session:
        assert session.scalars(select(Rollout.completion)).all() == ["a␀b ‮ <script>"]


@pytest.mark.parametrize("seed", range(3))
def test_each_step_is_recorded_once_however_often_engine_and_worker_die(
    database: Database, claimed: Claim, run_folder: Path, seed: int
) -> None:
    """Attempts write a random number of events, of which a random number is recorded before both are gone."""
    chance, num_steps, committed = random.Random(seed), 40, 0
    for _ in range(30):
        fence = claimed.fence
        path = write_events(run_folder, fence, start_events(fence, resumed_from_step=committed))
        recorder = Recorder(database, claimed, run_folder)
        for step in range(committed + 1, num_steps + 1):
            write_events(run_folder, fence, [step_event(step, loss=fence)])
            if step % 7 == 0:
                write_events(run_folder, fence, [checkpoint_event(run_folder, fence, step)])
            if chance.random() < 0.3:
                recorder.advance()
            if chance.random() < 0.1 or step == num_steps:
                break
        with path.open("a") as file:
            file.write('{"kind":"step","ti')  # killed in the middle of a line
        if step == num_steps:
            _record_all(recorder)
            break
        set_columns(database, claimed.run_id, attempt=1)
        claimed = _claimed_again(database, claimed)
        Recorder(database, claimed, run_folder).catch_up()
        checkpoint = resume_checkpoint(database, claimed, FolderStore(run_folder.parent), lambda: None)
        committed = int(checkpoint.name.removeprefix("step-")) if checkpoint else 0
    assert recorded_steps(database, claimed.run_id) == list(range(1, num_steps + 1))
    run = run_row(database, claimed.run_id)
    assert (run.last_step, run.training_seconds) == (num_steps, 2.0 * num_steps)


def test_what_a_lost_engine_emits_behind_its_successors_back_is_not_recorded(database: Database, home: Path) -> None:
    """A worker that was frozen, not dead: its engine goes on while the next attempt trains, until it wakes up."""
    (run_id,) = queue_runs(database, short_spec())
    folder = home / "runs" / run_id

    def lose() -> None:
        set_columns(database, run_id, lease_until=None, not_before=None)
        with database.write() as session:
            assert reap(session, lambda owner: False) == [run_id]
        set_columns(database, run_id, not_before=None)

    frozen = claim(database)
    write_events(folder, frozen.fence, [*start_events(frozen.fence), step_event(1, loss=1.0)])
    assert Recorder(database, frozen, folder).advance()
    lose()
    successor = claim(database)
    write_events(folder, successor.fence, [*start_events(successor.fence), step_event(1, 2.0), step_event(2, 2.0)])
    recorder = Recorder(database, successor, folder)
    recorder.catch_up()
    assert recorder.advance()
    write_events(folder, frozen.fence, [step_event(2, loss=1.0), step_event(3, loss=1.0)])
    lose()
    Recorder(database, claim(database), folder).catch_up()
    with database.read() as session:
        rows = session.execute(
            select(Metric.step, Metric.fence).where(Metric.run_id == run_id, Metric.key == "loss").order_by(Metric.step)
        ).all()
    assert [tuple(row) for row in rows] == [(1, successor.fence), (2, successor.fence)]


def test_steps_that_come_together_are_recorded_as_those_that_come_alone(database: Database, home: Path) -> None:
    """Many in one statement: also a step that is said twice, values that do not exist, and steps without a curve."""
    steps = [step_event(step, loss=step / 7) for step in range(1, 31)]
    steps[4] = steps[4].model_copy(update={"position_loss": [], "position_count": []})
    run_ids = queue_runs(database, short_spec(), short_spec())
    for run_id, size in zip(run_ids, (1, 30), strict=True):
        claimed = claim(database)
        recorder = Recorder(database, claimed, home / "runs" / claimed.run_id)
        write_events(recorder.run_folder, claimed.fence, start_events(claimed.fence))
        assert (claimed.run_id, recorder.advance()) == (run_id, True)
        for begin in range(0, 30, size):
            write_events(recorder.run_folder, claimed.fence, [steps[0], *steps[begin : begin + size]])
            assert recorder.advance()
    with database.read() as session:
        alone, together = (
            [
                sorted(session.execute(select(*columns).where(table.run_id == run_id)).all(), key=str)
                for table, columns in (
                    (Metric, (Metric.key, Metric.step, Metric.value)),
                    (PositionCurve, (PositionCurve.step, PositionCurve.mean, PositionCurve.p90, PositionCurve.count)),
                )
            ]
            for run_id in run_ids
        )
    assert alone == together
    assert [len(rows) for rows in together] == [30 * 6, 29]
