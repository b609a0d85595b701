"""Runs with the real engine whose files go into a bucket: begun on one machine's disk, ended on another's."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import select

from backend.artifacts import Artifact
from backend.database import Database
from backend.records import Attempt, Checkpoint
from backend.s3_bucket import S3Bucket
from backend.s3_store import S3Store
from engine.playground_spec import CheckpointSpeaker, PlaygroundSpec
from tests.s3.object_store import make_bucket
from tests.worker.runs import once, recorded_steps, run_row, short_spec
from tests.worker.supervising import supervise
from worker.engine_server import EngineServer
from worker.named_files import fetch_named
from worker.settings import WorkerSettings
from worker.workplace import Workplace

SPEC = short_spec(num_steps=12, checkpoints={"every_steps": 3})
LONGER = short_spec(num_steps=60, checkpoints={"every_steps": 4})


def machine(
    home: Path, database: Database, bucket: S3Bucket | None, engines: EngineServer | None, shutdown: threading.Event
) -> Workplace:
    """A worker with a home of its own and this bucket, or none."""
    home.mkdir(exist_ok=True)
    settings = WorkerSettings(stop_seconds=30, retry_seconds=0, store_patience_seconds=1)
    store = None if bucket is None else S3Store(bucket, home / "runs")
    return Workplace(database, home, home / "runs", settings, shutdown.is_set, engine_server=engines, store=store)


def last_weights(database: Database, run_id: str) -> tuple[int, str]:
    """Step and sha256 of the weights of a run's last checkpoint."""
    with database.read() as session:
        query = select(Checkpoint).where(Checkpoint.run_id == run_id, Checkpoint.removed_at.is_(None))
        row = session.scalars(query.order_by(Checkpoint.step.desc())).first()
    assert row is not None
    return row.step, next(file["sha256"] for file in row.files if file["name"] == "model.safetensors")


@pytest.mark.full
def test_a_run_goes_on_and_is_asked_on_the_disk_of_another_machine(
    database: Database, bucket: S3Bucket, engines: EngineServer | None, tmp_path: Path
) -> None:
    first_leaves = threading.Event()
    first = machine(tmp_path / "first", database, bucket, engines, first_leaves)
    second = machine(tmp_path / "second", database, bucket, engines, threading.Event())
    with once(database, lambda run_id: run_row(database, run_id).last_step >= 4, lambda _: first_leaves.set()):
        begun = supervise(first, LONGER)
    assert run_row(database, begun.run_id).state == "queued"
    assert not second.run_dir.exists()
    (second.home / "logs").mkdir()
    supervise(second)
    run = run_row(database, begun.run_id)
    assert (run.state, run.last_step, run.failure_message) == ("succeeded", 60, None)
    assert recorded_steps(database, begun.run_id) == list(range(1, 61))
    with database.read() as session:
        resumed = session.get_one(Attempt, (begun.run_id, run.fence)).resumed_from_step
    assert resumed >= 4
    # A third machine, which has nothing, is asked for it by a name.
    with database.read() as session:
        row = session.scalars(
            select(Checkpoint).where(Checkpoint.run_id == begun.run_id).order_by(Checkpoint.step.desc())
        ).first()
    assert row is not None
    third = machine(tmp_path / "third", database, bucket, engines, threading.Event())
    speaker = CheckpointSpeaker(folder=f"home:runs/{row.run_id}/attempts/{row.fence}/{row.path}", run_name="a", step=60)
    asked = PlaygroundSpec(prompt="k3", run=LONGER, speakers=[speaker])
    fetch_named(database, third.artifacts, third.home, asked, lambda: None)
    there = third.artifacts.local(Artifact(row.run_id, row.fence, row.path))
    assert {file["name"] for file in row.files} | {"manifest.json"} == {
        path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()
    }


@pytest.mark.full
def test_two_machines_make_of_a_run_what_one_makes_bit_for_bit(
    database: Database, bucket: S3Bucket, engines: EngineServer | None, tmp_path: Path
) -> None:
    first_leaves = threading.Event()
    first = machine(tmp_path / "first", database, bucket, engines, first_leaves)
    with once(database, lambda run_id: run_row(database, run_id).last_step >= 4, lambda _: first_leaves.set()):
        begun = supervise(first, LONGER)
    supervise(machine(tmp_path / "second", database, bucket, engines, threading.Event()))
    alone = machine(tmp_path / "alone", database, None, engines, threading.Event())
    assert last_weights(database, supervise(alone, LONGER).run_id) == last_weights(database, begun.run_id)


@pytest.mark.full
def test_a_run_whose_bucket_is_missing_waits_by_name_and_loses_nothing(
    database: Database, bucket: S3Bucket, engines: EngineServer | None, tmp_path: Path
) -> None:
    missing = S3Bucket(bucket.settings.model_copy(update={"url": f"{bucket.settings.url.replace('runs-', 'later-')}"}))
    place = machine(tmp_path / "machine", database, missing, engines, threading.Event())
    begun = supervise(place, SPEC)
    run = run_row(database, begun.run_id)
    assert (run.state, run.failure_kind) == ("queued", "store_unavailable")
    assert "There is no bucket 'later-" in str(run.failure_message)
    with database.read() as session:
        assert session.scalars(select(Checkpoint)).all() == []
    on_disk = sorted(path.name for path in (place.run_dir / begun.run_id / "attempts/1/checkpoints").iterdir())
    assert on_disk
    make_bucket(missing.settings)
    supervise(place)
    run = run_row(database, begun.run_id)
    assert (run.state, run.last_step) == ("succeeded", 12)
    assert recorded_steps(database, begun.run_id) == list(range(1, 13))
    with database.read() as session:
        attempt = session.get_one(Attempt, (begun.run_id, run.fence))
    # Nothing was trained twice: it went on from the disk, or was done already.
    assert f"step-{attempt.resumed_from_step}" in on_disk or attempt.pid is None
