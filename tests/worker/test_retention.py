"""The worker drops what the spec does not keep, of all attempts; a pin spares a checkpoint or finds that it is gone."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import select, update

from backend.database import Database
from backend.folder_store import FolderStore
from backend.queries.claims import Claim, LeaseLost, reap
from backend.queries.retention import set_pinned
from backend.records import Checkpoint, Event
from engine.events import CheckpointSaved
from engine.spec import RunSpec
from tests.worker.runs import claim, queue_runs, set_columns, short_spec, write_events
from tests.worker.sample_events import checkpoint_event, evaluation_event, start_events, step_event
from worker.recorder import Recorder
from worker.retention import drop_unkept

SPEC = short_spec(checkpoints={"every_steps": 1, "keep_last": 2})


@pytest.fixture
def run_folder(home: Path, database: Database) -> Path:
    """The folder of the only run, which is queued."""
    return home / "runs" / queue_runs(database, SPEC)[0]


@pytest.fixture
def claimed(database: Database, run_folder: Path) -> Claim:  # noqa: ARG001  # it queues the run
    """That run, claimed for its first attempt."""
    return claim(database)


def saved(run_folder: Path, fence: int, step: int, *, best: str | None = None, spec: RunSpec = SPEC) -> CheckpointSaved:
    event = checkpoint_event(run_folder, fence, step, spec=spec)
    path = f"attempts/{fence}/{event.path}"
    return event.model_copy(update={"best_path": best or path, "is_best": best in (None, path)})


def record(database: Database, claimed: Claim, run_folder: Path) -> None:
    recorder = Recorder(database, claimed, run_folder)
    while recorder.advance():
        pass


def steps(database: Database) -> list[tuple[int, int]]:
    """Attempt and step of the checkpoints in the list."""
    with database.read() as session:
        rows = select(Checkpoint.fence, Checkpoint.step).where(Checkpoint.removed_at.is_(None))
        return [(fence, step) for fence, step in session.execute(rows.order_by(Checkpoint.step))]


def folders(run_folder: Path) -> list[tuple[int, int]]:
    found = run_folder.glob("attempts/*/checkpoints/*")
    return sorted(((int(p.parts[-3]), int(p.name.removeprefix("step-"))) for p in found), key=lambda one: one[1])


def test_newest_and_best_stay_with_their_folders_and_the_history_says_what_went(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    best = "attempts/1/checkpoints/step-2"
    events = [saved(run_folder, 1, 1), *(saved(run_folder, 1, step, best=best) for step in (2, 3, 4, 5))]
    write_events(run_folder, 1, [*start_events(1), *events])
    record(database, claimed, run_folder)
    assert steps(database) == folders(run_folder) == [(1, 2), (1, 4), (1, 5)]
    with database.read() as session:
        told = session.scalars(select(Event).where(Event.kind == "checkpoint_removed").order_by(Event.seq)).all()
        assert [event.payload["step"] for event in told] == [1, 3]
        assert session.scalars(select(Checkpoint.step).where(Checkpoint.is_best)).all() == [2]


def test_the_best_by_evaluation_stay(database: Database, home: Path) -> None:
    spec = short_spec(checkpoints={"every_steps": 1, "keep_last": 1, "keep_best": 3, "keep_every_steps": 5})
    run_folder = home / "runs" / queue_runs(database, spec)[0]
    claimed = claim(database)
    accuracies = {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.6, 5: 0.0, 6: 0.7, 7: 0.3}
    best = "attempts/1/checkpoints/step-2"
    for step, accuracy in accuracies.items():
        path = None if step < 2 else best
        events = [
            step_event(step),
            evaluation_event(step, accuracy, is_best=step in (1, 2)),
            saved(run_folder, 1, step, best=path, spec=spec),
        ]
        write_events(run_folder, 1, [*(start_events(1) if step == 1 else []), *events])
    record(database, claimed, run_folder)
    assert steps(database) == folders(run_folder) == [(1, 2), (1, 4), (1, 5), (1, 6), (1, 7)]


def test_a_pinned_checkpoint_stays_until_it_is_unpinned(database: Database, claimed: Claim, run_folder: Path) -> None:
    write_events(run_folder, 1, [*start_events(1), saved(run_folder, 1, 1), saved(run_folder, 1, 2)])
    record(database, claimed, run_folder)
    with database.write() as session:
        id = session.scalars(select(Checkpoint.id).where(Checkpoint.step == 1)).one()
        assert set_pinned(session, id, pinned=True)
    recorder = Recorder(database, claimed, run_folder)
    recorder._offset = (run_folder / "attempts/1/events.jsonl").stat().st_size
    write_events(run_folder, 1, [saved(run_folder, 1, step) for step in (3, 4)])
    assert recorder.advance()
    assert steps(database) == folders(run_folder) == [(1, 1), (1, 3), (1, 4)]
    with database.write() as session:
        assert set_pinned(session, id, pinned=False)
    drop_unkept(database, claimed, FolderStore(run_folder.parent))
    assert steps(database) == folders(run_folder) == [(1, 3), (1, 4)]
    with database.write() as session:
        assert not set_pinned(session, id, pinned=True), "it is gone"


def test_a_pin_and_a_removal_at_the_same_time_never_lose_a_pinned_checkpoint(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    for at in range(1, 16, 3):
        events = [saved(run_folder, 1, step) for step in range(at, at + 3)]
        write_events(run_folder, 1, [*(start_events(1) if at == 1 else []), *events])
    with database.write() as session:  # recorded, not yet dropped
        session.execute(update(Checkpoint).values(pinned=True))
    record(database, claimed, run_folder)
    with database.write() as session:
        session.execute(update(Checkpoint).values(pinned=False, removed_at=None))
        ids = session.scalars(select(Checkpoint.id).order_by(Checkpoint.step)).all()
    pinned: list[str] = []

    def pin() -> None:
        for id in ids:
            with database.write() as session:
                if set_pinned(session, id, pinned=True):
                    pinned.append(id)

    thread = threading.Thread(target=pin)
    thread.start()
    drop_unkept(database, claimed, FolderStore(run_folder.parent))
    thread.join()
    with database.read() as session:
        kept = session.scalars(select(Checkpoint.id).where(Checkpoint.removed_at.is_(None))).all()
    assert set(pinned) <= set(kept)


def test_a_resumed_attempt_drops_what_earlier_ones_left(database: Database, claimed: Claim, run_folder: Path) -> None:
    first = saved(run_folder, 1, 1)
    best = f"attempts/1/{first.path}"
    write_events(run_folder, 1, [*start_events(1), first, saved(run_folder, 1, 2, best=best), step_event(3)])
    record(database, claimed, run_folder)
    set_columns(database, claimed.run_id, lease_until=None)
    with database.write() as session:
        reap(session, lambda owner: False)
    again = claim(database)
    with pytest.raises(LeaseLost):
        drop_unkept(database, claimed, FolderStore(run_folder.parent))
    events = [saved(run_folder, again.fence, step, best=best) for step in (3, 4)]
    write_events(run_folder, again.fence, [*start_events(again.fence, resumed_from_step=2), *events])
    record(database, again, run_folder)
    assert steps(database) == folders(run_folder) == [(1, 1), (again.fence, 3), (again.fence, 4)]
    with database.read() as session:
        assert session.scalars(select(Checkpoint.step).where(Checkpoint.is_best)).all() == [1]
