"""One attempt with the real engine and the tiny pair: it ends, is stopped, is killed, goes on.

Slow: each test starts the engine, which takes several seconds, up to three times.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import select

from backend.database import Database
from backend.queries.claims import Claim, claim_run, reap
from backend.queries.drains import drain
from backend.queries.leases import claim_preflight, keep_worker
from backend.queries.preflights import create_preflight, preflight
from backend.queries.retention import set_pinned
from backend.queries.wishes import ask_to_cancel, ask_to_pause, ask_to_resume, ask_to_retry
from backend.records import Attempt, Checkpoint, Event
from backend.resources import WorkerCapabilities
from engine.events import Finished
from engine.manifest import Expected, damage_of
from engine.spec import RunSpec
from tests import databases
from tests.worker.runs import (
    OWNER,
    claim,
    once,
    queue_runs,
    recorded_steps,
    run_row,
    set_columns,
    short_spec,
    write_events,
)
from worker.engine_server import EngineServer
from worker.preflight import answer
from worker.settings import WorkerSettings
from worker.slots import Slot
from worker.supervisor import Supervisor
from worker.workplace import Workplace

_EITHER_WAY = pytest.mark.parametrize(
    "engines", ["forked", pytest.param("alone", marks=pytest.mark.full)], indirect=True
)
_LONG = short_spec(num_steps=1000, checkpoints={"every_steps": 10})


@pytest.fixture
def database(home: Path) -> Iterator[Database]:
    """SQLite alone: the engine makes the difference here, and it knows no database."""
    opened = Database(databases.sqlite_copy(home))
    yield opened
    opened.close()


@pytest.fixture
def shutdown() -> threading.Event:
    """Set: the worker is about to end."""
    return threading.Event()


@pytest.fixture
def place(
    home: Path,
    database: Database,
    shutdown: threading.Event,
    engines: EngineServer | None,
) -> Workplace:
    settings = WorkerSettings(stop_seconds=30, retry_seconds=0)
    return Workplace(database, home, home / "runs", settings, shutdown.is_set, engine_server=engines)


def _supervise(place: Workplace, spec: RunSpec | None = None) -> Claim:
    """Queue a run, or take the one that is queued, and work on it."""
    if spec is not None:
        queue_runs(place.database, spec)
    claimed = claim(place.database)
    Supervisor(claimed, Slot(0, None), place).work()
    return claimed


def _attempt(database: Database, claimed: Claim) -> Attempt:
    with database.read() as session:
        return session.get_one(Attempt, (claimed.run_id, claimed.fence))


def _kill_engine(place: Workplace, number: signal.Signals = signal.SIGKILL) -> Callable[[str], None]:
    def act(run_id: str) -> None:
        with place.database.read() as session:
            pid = session.scalar(select(Attempt.pid).where(Attempt.run_id == run_id).order_by(Attempt.fence.desc()))
        assert pid is not None
        os.kill(pid, number)

    return act


def _has_steps(place: Workplace, num_steps: int) -> Callable[[str], bool]:
    return lambda run_id: run_row(place.database, run_id).last_step >= num_steps


@_EITHER_WAY
def test_a_run_succeeds_with_all_its_steps_and_a_checkpoint(place: Workplace) -> None:
    claimed = _supervise(place, short_spec())
    run = run_row(place.database, claimed.run_id)
    assert (run.state, run.last_step, run.failure_message) == ("succeeded", 10, None)
    assert recorded_steps(place.database, claimed.run_id) == list(range(1, 11))
    assert run.best_accuracy is not None
    attempt = _attempt(place.database, claimed)
    assert (attempt.outcome, attempt.exit_code) == ("succeeded", 0)
    assert attempt.pid is not None
    assert not psutil.pid_exists(attempt.pid)
    with place.database.read() as session:
        steps = session.scalars(select(Checkpoint.step).where(Checkpoint.removed_at.is_(None))).all()
    assert 10 in steps


def test_a_spec_that_cannot_work_fails_by_name_and_is_not_tried_again(place: Workplace) -> None:
    claimed = _supervise(place, short_spec(teacher={"path": "/nowhere/teacher"}))
    run = run_row(place.database, claimed.run_id)
    assert (run.state, run.failure_kind) == ("failed", "bad_model")
    assert "/nowhere/teacher" in (run.failure_message or "")


@_EITHER_WAY
def test_a_cancelled_run_stops_and_keeps_what_it_has(place: Workplace) -> None:
    def cancel(run_id: str) -> None:
        set_columns(place.database, run_id, desired_state="cancel", checkpoint_on_cancel=True)

    with once(place.database, _has_steps(place, 3), cancel):
        claimed = _supervise(place, _LONG)
    run = run_row(place.database, claimed.run_id)
    assert run.state == "cancelled"
    with place.database.read() as session:
        assert run.last_step in session.scalars(select(Checkpoint.step)).all()
    assert recorded_steps(place.database, claimed.run_id) == list(range(1, run.last_step + 1))


def test_a_paused_run_leaves_its_worker_after_a_checkpoint_and_goes_on_from_it(place: Workplace) -> None:
    def pause(run_id: str) -> None:
        with place.database.write() as session:
            ask_to_pause(session, run_id)

    with once(place.database, _has_steps(place, 3), pause):
        first = _supervise(place, short_spec(num_steps=400, checkpoints={"every_steps": 400}))
    paused = run_row(place.database, first.run_id)
    assert (paused.state, paused.attempt, paused.lease_owner) == ("paused", 0, None)
    with place.database.write() as session:
        assert claim_run(session, owner=OWNER, host="", boot_id="") is None
        ask_to_resume(session, first.run_id)
    with once(place.database, _has_steps(place, paused.last_step + 1), pause):
        second = _supervise(place)
    assert _attempt(place.database, second).resumed_from_step == paused.last_step
    steps = recorded_steps(place.database, first.run_id)
    assert steps == list(range(1, run_row(place.database, first.run_id).last_step + 1))
    with place.database.read() as session:
        events = session.scalars(
            select(Event).where(Event.run_id == first.run_id, Event.kind == "state").order_by(Event.seq)
        )
        moves = [event.payload for event in events]
    assert moves[4]["reason"] == "Paused as asked, after a checkpoint."
    states = [move["state"] for move in moves]
    assert states == ["queued", *["starting", "running", "pausing", "paused"], "queued", "starting", "running", "pausing",
                      "paused"]  # fmt: skip


def test_a_pause_that_becomes_a_cancellation_ends_the_run(place: Workplace) -> None:
    def pause_then_cancel(run_id: str) -> None:
        _kill_engine(place, signal.SIGSTOP)(run_id)
        with place.database.write() as session:
            ask_to_pause(session, run_id)
        while run_row(place.database, run_id).state != "pausing":
            time.sleep(0.05)
        with place.database.write() as session:
            ask_to_cancel(session, run_id, checkpoint=True)
        while run_row(place.database, run_id).state != "cancelling":
            time.sleep(0.05)
        _kill_engine(place, signal.SIGCONT)(run_id)

    with once(place.database, _has_steps(place, 3), pause_then_cancel):
        claimed = _supervise(place, _LONG)
    assert run_row(place.database, claimed.run_id).state == "cancelled"


def test_an_engine_that_does_nothing_any_more_is_ended_and_its_run_can_be_retried(place: Workplace) -> None:
    watchful = Workplace(place.database, place.home, place.run_dir, WorkerSettings(stall_seconds=10), lambda: False)
    with once(place.database, _has_steps(place, 12), _kill_engine(place, signal.SIGSTOP)):
        claimed = _supervise(watchful, _LONG)
    run = run_row(place.database, claimed.run_id)
    assert (run.state, run.failure_kind) == ("failed", "stalled")
    assert "did nothing for 10 s" in (run.failure_message or "")
    pid = _attempt(place.database, claimed).pid
    assert pid is not None
    assert not psutil.pid_exists(pid)
    with place.database.write() as session:
        ask_to_retry(session, claimed.run_id, from_scratch=True)

    def is_at_work(run_id: str) -> bool:
        # Until the new attempt has begun, the run still tells the steps of the old one.
        return run_row(place.database, run_id).state == "running" and _has_steps(place, 2)(run_id)

    with once(place.database, is_at_work, lambda run_id: set_columns(place.database, run_id, desired_state="cancel")):
        again = _supervise(place)
    assert _attempt(place.database, again).resumed_from_step == 0, "what was saved before does not count"


def test_an_engine_that_hangs_behind_its_last_word_has_done_its_work(place: Workplace) -> None:
    watchful = Workplace(place.database, place.home, place.run_dir, WorkerSettings(stall_seconds=10), lambda: False)
    finished = Finished(time=time.time(), step=9, best_step=9, reason="steps", seconds=1, training_seconds=1)

    def freeze_behind_its_last_word(run_id: str) -> None:
        _kill_engine(place, signal.SIGSTOP)(run_id)
        write_events(place.run_dir / run_id, 1, [finished])

    with once(place.database, _has_steps(place, 3), freeze_behind_its_last_word):
        claimed = _supervise(watchful, _LONG)
    run = run_row(place.database, claimed.run_id)
    assert (run.state, run.failure_kind) == ("succeeded", None)
    pid = _attempt(place.database, claimed).pid
    assert pid is not None
    assert not psutil.pid_exists(pid)


@_EITHER_WAY
def test_a_killed_engine_is_resumed_from_its_checkpoint_and_no_step_is_recorded_twice(place: Workplace) -> None:
    with once(place.database, _has_steps(place, 12), _kill_engine(place)):
        first = _supervise(place, short_spec(num_steps=300, checkpoints={"every_steps": 5}))
    run = run_row(place.database, first.run_id)
    assert (run.state, run.attempt) == ("queued", 1)
    assert _attempt(place.database, first).exit_code == -signal.SIGKILL
    second = _supervise(place)
    run = run_row(place.database, first.run_id)
    assert (run.state, run.last_step) == ("succeeded", 300)
    assert _attempt(place.database, second).resumed_from_step >= 10
    assert recorded_steps(place.database, first.run_id) == list(range(1, 301))


def test_a_run_goes_on_from_an_older_checkpoint_when_the_newest_is_damaged(place: Workplace) -> None:
    with once(place.database, _has_steps(place, 12), _kill_engine(place)):
        first = _supervise(place, short_spec(num_steps=300, checkpoints={"every_steps": 5, "keep_last": 9}))
    with place.database.read() as session:
        newest = session.scalars(select(Checkpoint).order_by(Checkpoint.step.desc())).first()
    assert newest is not None
    assert newest.step >= 10
    weights = place.run_dir / first.run_id / "attempts" / "1" / newest.path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    second = _supervise(place)
    assert run_row(place.database, first.run_id).state == "succeeded"
    assert _attempt(place.database, second).resumed_from_step == newest.step - 5
    assert recorded_steps(place.database, first.run_id) == list(range(1, 301))


def test_a_checkpoint_that_is_pinned_while_the_run_works_is_there_at_its_end(place: Workplace) -> None:
    pinned: list[Checkpoint] = []

    def pin(run_id: str) -> None:
        with place.database.write() as session:
            oldest = session.scalars(
                select(Checkpoint)
                .where(Checkpoint.run_id == run_id, Checkpoint.removed_at.is_(None))
                .order_by(Checkpoint.step)
            ).first()
            assert oldest is not None
            assert set_pinned(session, oldest.id, pinned=True)
        pinned.append(oldest)

    spec = short_spec(num_steps=150, checkpoints={"every_steps": 5, "keep_last": 1})
    with once(place.database, _has_steps(place, 12), pin):
        claimed = _supervise(place, spec)
    assert run_row(place.database, claimed.run_id).state == "succeeded"
    with place.database.read() as session:
        left = session.scalars(select(Checkpoint.step).where(Checkpoint.removed_at.is_(None))).all()
    folders = (place.run_dir / claimed.run_id / "attempts" / "1" / "checkpoints").iterdir()
    assert {f"step-{step}" for step in left} == {path.name for path in folders}
    assert {pinned[0].step, 150} <= set(left)
    assert len(left) <= 3, "the pinned one, the newest and the best"
    folder = place.run_dir / claimed.run_id / "attempts" / "1" / pinned[0].path
    assert damage_of(folder, Expected(manifest_sha256=pinned[0].manifest_sha256)) is None


def test_a_worker_that_shuts_down_leaves_a_run_that_goes_on(place: Workplace, shutdown: threading.Event) -> None:
    with once(place.database, _has_steps(place, 3), lambda run_id: shutdown.set()):
        claimed = _supervise(place, _LONG)
    run = run_row(place.database, claimed.run_id)
    assert (run.state, run.attempt) == ("queued", 0)
    with place.database.read() as session:
        assert run.last_step in session.scalars(select(Checkpoint.step)).all(), "nothing is lost by a planned end"


def test_a_worker_that_is_drained_at_once_gives_its_run_back_after_a_checkpoint(place: Workplace) -> None:
    with place.database.write() as session:
        keep_worker(
            session, "w", host="h", boot_id="", pid=1, pid_started=0.0, slot="cpu0", capabilities=WorkerCapabilities()
        )
        drain(session, "w", requeue=False)

    def give_back(_run_id: str) -> None:
        with place.database.write() as session:
            drain(session, "w", requeue=True)

    queue_runs(place.database, _LONG)
    claimed = claim(place.database)
    with once(place.database, _has_steps(place, 3), give_back):
        Supervisor(claimed, Slot(0, None), place, worker_id="w").work()
    run = run_row(place.database, claimed.run_id)
    assert (run.state, run.attempt) == ("queued", 0)
    assert run.last_step >= 3, "to be drained alone did not stop it"
    with place.database.read() as session:
        assert run.last_step in session.scalars(select(Checkpoint.step)).all()
        moves = session.scalars(select(Event.payload).where(Event.kind == "state").order_by(Event.seq)).all()
    assert moves[-1]["reason"] == "The worker is drained; the run goes on from its last checkpoint."


def test_an_engine_that_hangs_is_killed_when_its_time_to_stop_is_over(place: Workplace) -> None:
    impatient = Workplace(
        place.database, place.home, place.run_dir, WorkerSettings(stop_seconds=1, terminate_seconds=1), lambda: False
    )

    def freeze_and_cancel(run_id: str) -> None:
        _kill_engine(place, signal.SIGSTOP)(run_id)
        set_columns(place.database, run_id, desired_state="cancel")

    with once(place.database, _has_steps(place, 1), freeze_and_cancel):
        claimed = _supervise(impatient, _LONG)
    assert run_row(place.database, claimed.run_id).state == "cancelled"
    pid = _attempt(place.database, claimed).pid
    assert pid is not None
    assert not psutil.pid_exists(pid)


@_EITHER_WAY
def test_whoever_loses_the_lease_ends_its_engine_and_leaves_the_run_alone(place: Workplace) -> None:
    def take_away(run_id: str) -> None:
        set_columns(place.database, run_id, lease_until=None)
        with place.database.write() as session:
            assert reap(session, lambda owner: False) == [run_id]

    with once(place.database, _has_steps(place, 3), take_away):
        claimed = _supervise(place, _LONG)
    run = run_row(place.database, claimed.run_id)
    assert (run.state, run.fence) == ("queued", claimed.fence + 1)
    pid = _attempt(place.database, claimed).pid
    assert pid is not None
    assert not psutil.pid_exists(pid)


def test_an_engine_that_always_dies_fails_the_run_with_its_last_words(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "not a number")  # no Python process starts with this
    queue_runs(place.database, short_spec())
    for _ in range(3):
        claimed = claim(place.database)
        Supervisor(claimed, Slot(0, None), place).work()
        set_columns(place.database, claimed.run_id, not_before=None)
    run = run_row(place.database, claimed.run_id)
    assert (run.state, run.failure_kind) == ("failed", "engine_crashed")
    assert "PYTHONHASHSEED" in (run.failure_message or "")
    assert "3 attempts in a row" in (run.failure_message or "")


@_EITHER_WAY
def test_a_preflight_says_at_which_field_a_spec_cannot_work(place: Workplace) -> None:
    with place.database.write() as session:
        asked = create_preflight(session, short_spec(teacher={"path": "/nowhere/teacher"}))
        claimed = claim_preflight(session, OWNER)
    assert claimed is not None
    answer(claimed, [Slot(0, None)], place)
    with place.database.read() as session:
        found = preflight(session, asked.id)
    assert found is not None
    assert found.state == "done"
    assert [finding.field for finding in found.findings] == ["teacher.path"]
    assert found.facts["train_prompts"] == 4096
