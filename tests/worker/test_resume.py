"""The next attempt starts from the newest checkpoint that is whole, and a run with none left fails by name."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select, update

from backend.database import Database
from backend.folder_store import FolderStore
from backend.queries.claims import Claim, end_attempt
from backend.queries.garbage import run_folders
from backend.queries.wishes import ask_to_retry
from backend.records import Attempt, Checkpoint, Event
from engine.events import CheckpointSaved
from tests.worker.runs import claim, queue_runs, run_row, set_columns, short_spec, write_events
from tests.worker.sample_events import checkpoint_event, start_events
from worker.recorder import Recorder
from worker.resume import FolderUnreachable, NoCheckpointLeft, resume_checkpoint
from worker.settings import WorkerSettings
from worker.slots import Slot
from worker.supervisor import Supervisor
from worker.workplace import Workplace

WEIGHTS = "model.safetensors"
SPEC = short_spec(checkpoints={"every_steps": 2, "keep_last": 9})
ANOTHER_SPEC = short_spec(checkpoints={"every_steps": 2, "keep_last": 9}, seed=1)


@pytest.fixture
def run_folder(home: Path, database: Database) -> Path:
    """The folder of the only run, which is queued."""
    return home / "runs" / queue_runs(database, SPEC)[0]


@pytest.fixture
def claimed(database: Database, run_folder: Path) -> Claim:
    """That run at its first attempt, with checkpoints of the steps 2, 4 and 6."""
    claimed = claim(database)
    commit(database, claimed, run_folder, *(checkpoint_event(run_folder, 1, step, spec=SPEC) for step in (2, 4, 6)))
    return claimed


def commit(database: Database, claimed: Claim, run_folder: Path, *events: CheckpointSaved) -> None:
    write_events(run_folder, 1, [*start_events(1), *events])
    recorder = Recorder(database, claimed, run_folder)
    while recorder.advance():
        pass


def step_folder(run_folder: Path, step: int) -> Path:
    return run_folder / "attempts" / "1" / "checkpoints" / f"step-{step}"


def truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[3] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def replace_by_another_run(folder: Path) -> None:
    elsewhere = folder.parents[3] / "another-run"
    checkpoint_event(elsewhere, 1, 6, spec=ANOTHER_SPEC)
    shutil.rmtree(folder)
    shutil.copytree(elsewhere / "attempts/1/checkpoints/step-6", folder)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "model.safetensors has 16 bytes instead of 17"),
    "flipped bit": (flip_a_bit, "model.safetensors has another content"),
    "missing file": (lambda folder: (folder / "trainer/state.json").unlink(), "trainer/state.json is missing"),
    "extra file": (lambda folder: (folder / "adapter.safetensors").touch(), "'adapter.safetensors' is not in its"),
    "another run": (replace_by_another_run, "its manifest.json is not the one that was committed"),
    "another tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("[]"), "tokenizer.json has another"),
    "a link": (lambda folder: (folder / "tokenizer.json").unlink() or link(folder), "lies outside it"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "has no readable manifest.json (FileNotFound"),
    "torn manifest": (lambda folder: (folder / "manifest.json").write_text("{"), "no readable manifest.json (Validat"),
    "gone": (shutil.rmtree, "has no readable manifest.json"),
}


def link(folder: Path) -> None:
    outside = folder.parent / "outside.json"
    outside.write_text("{}")
    (folder / "tokenizer.json").symlink_to(outside)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_marked_noted_and_passed_over(
    database: Database, claimed: Claim, run_folder: Path, kind: str
) -> None:
    damage, words = DAMAGE[kind]
    damage(step_folder(run_folder, 6))
    assert resume_checkpoint(database, claimed, FolderStore(run_folder.parent), lambda: None) == Path(
        "attempts/1/checkpoints/step-4"
    )
    with database.read() as session:
        damaged = session.scalars(select(Checkpoint).where(Checkpoint.removed_at.is_not(None))).one()
        (warning,) = session.scalars(select(Event).where(Event.kind == "warning")).all()
        usable = session.scalars(select(Checkpoint.id).where(Checkpoint.step == 4)).one()
        assert session.get_one(Attempt, (claimed.run_id, 1)).resume_checkpoint_id == usable
    assert damaged.step == 6
    assert words in (damaged.damage or "")
    assert warning.payload["code"] == "bad_checkpoint"
    assert warning.payload["message"].startswith("The checkpoint of step 6 is damaged: ")
    assert words in warning.payload["message"]


def test_a_checkpoint_that_was_committed_for_another_spec_is_passed_over(database: Database, run_folder: Path) -> None:
    claimed = claim(database)
    events = [checkpoint_event(run_folder, 1, 2, spec=SPEC), checkpoint_event(run_folder, 1, 4, spec=ANOTHER_SPEC)]
    commit(database, claimed, run_folder, *events)
    assert resume_checkpoint(database, claimed, FolderStore(run_folder.parent), lambda: None) == Path(
        "attempts/1/checkpoints/step-2"
    )


def test_a_folder_without_a_row_is_no_checkpoint(database: Database, claimed: Claim, run_folder: Path) -> None:
    checkpoint_event(run_folder, 1, 8)
    assert resume_checkpoint(database, claimed, FolderStore(run_folder.parent), lambda: None) == Path(
        "attempts/1/checkpoints/step-6"
    )


def test_when_none_is_left_that_is_said_also_to_the_attempt_behind_a_dead_one(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    for step in (2, 4, 6):
        truncate(step_folder(run_folder, step))
    for _ in range(2):  # the second finds them marked already
        with pytest.raises(NoCheckpointLeft, match="3 of 3 are damaged"):
            resume_checkpoint(database, claimed, FolderStore(run_folder.parent), lambda: None)


def test_a_damaged_checkpoint_that_was_restored_is_used_again_and_its_run_can_be_retried(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    store = FolderStore(run_folder.parent)
    backup = Path(shutil.copytree(step_folder(run_folder, 6), run_folder.parent / "backup"))
    for step in (2, 4, 6):
        truncate(step_folder(run_folder, step))
    with pytest.raises(NoCheckpointLeft) as caught:
        resume_checkpoint(database, claimed, store, lambda: None)
    with database.write() as session:
        end_attempt(session, claimed, caught.value.ending)
        session.execute(update(Checkpoint).values(removed_at=Checkpoint.created_at))
        facts = run_folders(session, claimed.run_id, min_age_seconds=0)
    assert facts is not None
    assert len(facts.checkpoints) == 3, "what a person was told to restore is no garbage"
    shutil.copytree(backup, step_folder(run_folder, 6), dirs_exist_ok=True)
    with database.write() as session:
        ask_to_retry(session, claimed.run_id, from_scratch=False)
    found = resume_checkpoint(database, claim(database), store, lambda: None)
    assert found == Path("attempts/1/checkpoints/step-6")
    with database.read() as session:
        listed = session.scalars(select(Checkpoint).where(Checkpoint.removed_at.is_(None))).one()
    assert (listed.step, listed.damage) == (6, None)


def test_a_damaged_checkpoint_that_was_trained_over_does_not_come_back(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    store = FolderStore(run_folder.parent)
    backup = Path(shutil.copytree(step_folder(run_folder, 6), run_folder.parent / "backup"))
    truncate(step_folder(run_folder, 6))
    resume_checkpoint(database, claimed, store, lambda: None)
    set_columns(database, claimed.run_id, state="queued", lease_owner=None)
    again = claim(database)
    write_events(run_folder, 2, start_events(2, resumed_from_step=4))
    assert Recorder(database, again, run_folder).advance()
    shutil.copytree(backup, step_folder(run_folder, 6), dirs_exist_ok=True)
    assert resume_checkpoint(database, again, store, lambda: None) == Path("attempts/1/checkpoints/step-4")


def test_a_disk_that_is_not_mounted_is_held_against_no_checkpoint(
    database: Database, claimed: Claim, run_folder: Path
) -> None:
    run_folder.rename(run_folder.parent / "elsewhere")
    with pytest.raises(FolderUnreachable, match="attempts/1 of the run's checkpoints cannot be read") as caught:
        resume_checkpoint(database, claimed, FolderStore(run_folder.parent), lambda: None)
    assert (caught.value.ending.state, caught.value.ending.failure_kind) == ("queued", "store_unavailable")
    with database.read() as session:
        assert not session.scalars(select(Checkpoint).where(Checkpoint.removed_at.is_not(None))).all()


def test_a_run_without_a_whole_checkpoint_fails_and_does_not_start_over(
    database: Database, claimed: Claim, run_folder: Path, home: Path
) -> None:
    for step in (2, 4, 6):
        truncate(step_folder(run_folder, step))
    set_columns(database, claimed.run_id, state="queued", lease_owner=None)
    place = Workplace(database, home, home / "runs", WorkerSettings(), threading.Event().is_set)
    Supervisor(claim(database), Slot(0, None), place).work()
    run = run_row(database, claimed.run_id)
    assert (run.state, run.failure_kind) == ("failed", "bad_checkpoint")
    assert "restore the folder from a backup or start a new run" in (run.failure_message or "")
    assert not (run_folder / "attempts" / "2" / "events.jsonl").exists(), "no engine was started"
