"""What dead attempts left on the disk goes; what lives, is listed, pinned or not yet recorded stays."""

import os
import time
from pathlib import Path

import pytest
from sqlalchemy import select, update

from backend.database import Database, now_of
from backend.queries.claims import Claim, Ending, end_attempt, reap
from backend.records import Attempt, Checkpoint, Event
from backend.settings import Settings
from engine.staging import staging_beside
from tests.worker.runs import claim, queue_runs, set_columns, short_spec, write_events
from tests.worker.sample_events import checkpoint_event, start_events, step_event, traces_event
from worker.control import Control
from worker.garbage import GarbageCollector
from worker.recorder import Recorder

SPEC = short_spec(checkpoints={"every_steps": 1, "keep_last": 9})
OLD = time.time() - 25 * 3600


@pytest.fixture
def run_folder(home: Path, database: Database) -> Path:
    """The folder of the only run, which is queued."""
    return home / "runs" / queue_runs(database, SPEC)[0]


@pytest.fixture
def claimed(database: Database, run_folder: Path) -> Claim:
    """That run at its first attempt, with checkpoints of the steps 1 and 2, all recorded, and half of one of step 3."""
    claimed = claim(database)
    events = [checkpoint_event(run_folder, 1, step, spec=SPEC) for step in (1, 2)]
    write_events(run_folder, 1, [*start_events(1), *events])
    record(database, claimed, run_folder)
    half_written(run_folder, 1)
    return claimed


def record(database: Database, claimed: Claim, run_folder: Path) -> None:
    recorder = Recorder(database, claimed, run_folder)
    recorder.catch_up()
    while recorder.advance():
        pass


def half_written(run_folder: Path, attempt: int) -> Path:
    staging = staging_beside(run_folder / "attempts" / str(attempt) / "checkpoints" / "step-3")
    (staging / "model.safetensors").write_bytes(b"x" * 1000)
    return staging


def next_attempt(database: Database, run_folder: Path, *, is_recorded: bool = True) -> Claim:
    """The run is taken from its dead worker, claimed again, and the new attempt has recorded that it began."""
    run_id = run_folder.name
    set_columns(database, run_id, lease_until=None, attempt=1)
    with database.write() as session:
        reap(session, lambda owner: False)
    set_columns(database, run_id, not_before=None)
    again = claim(database)
    if is_recorded:
        write_events(run_folder, again.fence, [*start_events(again.fence, resumed_from_step=2), step_event(3)])
        record(database, again, run_folder)
    return again


def make_old(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (OLD, OLD), follow_symlinks=False)


def collect(database: Database, run_folder: Path) -> int:
    return GarbageCollector(database, run_folder.parent).turn()


def names(run_folder: Path) -> set[str]:
    found = run_folder.glob("attempts/*/checkpoints/*")
    return {path.relative_to(run_folder / "attempts").as_posix().partition(".tmp-")[0] for path in found}


STEPS = {"1/checkpoints/step-1", "1/checkpoints/step-2"}
HALF = "1/checkpoints/step-3"


def test_a_live_attempt_keeps_everything(database: Database, claimed: Claim, run_folder: Path) -> None:
    assert claimed.fence == 1
    checkpoint_event(run_folder, 1, 9, spec=SPEC)  # about to be recorded
    make_old(run_folder)
    assert collect(database, run_folder) == 0
    assert names(run_folder) == STEPS | {HALF, "1/checkpoints/step-9"}


@pytest.mark.usefixtures("claimed")
def test_half_written_checkpoints_of_a_dead_attempt_go_when_they_are_old(database: Database, run_folder: Path) -> None:
    again = next_attempt(database, run_folder)
    half_written(run_folder, again.fence)
    assert collect(database, run_folder) == 0, "too young"
    make_old(run_folder)
    assert collect(database, run_folder) == 1000
    assert names(run_folder) == STEPS | {f"{again.fence}/checkpoints/step-3"}
    with database.read() as session:
        (told,) = session.scalars(select(Event).where(Event.kind == "garbage_removed")).all()
    assert (told.payload["num_bytes"], told.payload["num_folders"]) == (1000, 1)
    assert collect(database, run_folder) == 0


@pytest.mark.usefixtures("claimed")
def test_one_fresh_file_makes_a_folder_young(database: Database, run_folder: Path) -> None:
    next_attempt(database, run_folder)
    make_old(run_folder)
    for path in run_folder.glob("attempts/1/checkpoints/*.tmp-*/model.safetensors"):
        os.utime(path)
    assert collect(database, run_folder) == 0


@pytest.mark.usefixtures("claimed")
def test_a_checkpoint_without_a_row_waits_until_its_attempt_is_recorded(database: Database, run_folder: Path) -> None:
    unrecorded = checkpoint_event(run_folder, 1, 4, spec=SPEC)
    checkpoint_event(run_folder, 1, 5, spec=SPEC)  # complete, but the engine died before it could say so
    write_events(run_folder, 1, [unrecorded])
    next_attempt(database, run_folder, is_recorded=False)
    make_old(run_folder)
    collect(database, run_folder)
    both = {"1/checkpoints/step-4", "1/checkpoints/step-5"}
    assert names(run_folder) == STEPS | both, "the next attempt may still find it"
    next_attempt(database, run_folder)
    make_old(run_folder)
    assert collect(database, run_folder) > 0
    assert names(run_folder) == STEPS | {"1/checkpoints/step-4"}


@pytest.mark.usefixtures("claimed")
def test_what_was_taken_out_of_the_list_goes_later_and_pinned_never(database: Database, run_folder: Path) -> None:
    next_attempt(database, run_folder)
    with database.write() as session:
        session.execute(update(Checkpoint).values(removed_at=now_of(session)))
        session.execute(update(Checkpoint).where(Checkpoint.step == 1).values(pinned=True))
    make_old(run_folder)
    collect(database, run_folder)
    assert names(run_folder) == STEPS, "a person may want to look at what was found damaged"
    with database.write() as session:
        session.execute(update(Checkpoint).values(removed_at=Checkpoint.created_at))
    assert collect(database, run_folder) > 0
    assert names(run_folder) == {"1/checkpoints/step-1"}


@pytest.mark.usefixtures("claimed")
def test_attempt_folders_without_rows_go_and_those_with_traces_stay(database: Database, run_folder: Path) -> None:
    second = next_attempt(database, run_folder)
    third = next_attempt(database, run_folder)
    write_events(run_folder, third.fence, [traces_event(2)])
    recorder = Recorder(database, third, run_folder)
    with database.read() as session:
        recorder._offset = session.get_one(Attempt, (third.run_id, third.fence)).event_offset
    assert recorder.advance()
    fourth = next_attempt(database, run_folder)
    make_old(run_folder)
    collect(database, run_folder)
    left = {int(path.name) for path in (run_folder / "attempts").iterdir()}
    assert left == {1, third.fence, fourth.fence}
    assert second.fence not in left


def test_a_run_that_is_over_is_cleaned_but_keeps_its_last_attempt(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    with database.write() as session:
        end_attempt(session, claimed, Ending("succeeded", "Finished."))
    make_old(run_folder)
    assert collect(database, run_folder) == 1000
    assert names(run_folder) == STEPS
    assert (run_folder / "attempts/1/events.jsonl").exists()


@pytest.mark.usefixtures("claimed")
def test_links_and_folders_of_unknown_runs_are_left_alone(database: Database, run_folder: Path, tmp_path: Path) -> None:
    next_attempt(database, run_folder)
    stranger = half_written(run_folder.parent / "another-installation", 1)
    outside = tmp_path / "outside"
    (outside / "step-7").mkdir(parents=True)
    (outside / "step-7" / "precious").write_text("x")
    (run_folder / "attempts/1/checkpoints/step-7").symlink_to(outside / "step-7")
    (run_folder / "attempts" / "0").symlink_to(outside)
    make_old(run_folder.parent)
    make_old(outside)
    assert collect(database, run_folder) == 1000
    assert stranger.exists()
    assert (outside / "step-7" / "precious").exists()


def test_the_control_process_does_it_in_its_turns_for_all_runs(settings: Settings, database: Database) -> None:
    left = []
    for run_id in queue_runs(database, *(short_spec(seed=seed) for seed in range(12))):
        set_columns(database, run_id, state="failed", fence=2)
        left.append(half_written(settings.run_dir / run_id, 1))
    make_old(settings.run_dir)
    control = Control(settings)
    control.turn()
    assert 0 < sum(path.exists() for path in left) < 12, "a few at a time"
    control.turn()
    assert not any(path.exists() for path in left)
    control.close()
