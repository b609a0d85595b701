"""Nothing is recorded that is not stored: a recorder on a real bucket, whole, broken, and on another machine's disk."""

import hashlib
import shutil
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from backend.database import Database
from backend.queries.claims import Claim, LeaseLost, reap
from backend.records import Attempt, Checkpoint, Event, Rollout
from backend.s3_bucket import S3Bucket
from backend.s3_store import S3Store
from backend.store_problem import StoreProblem
from tests.worker.runs import claim, queue_runs, set_columns, short_spec, write_events
from tests.worker.sample_events import checkpoint_event, start_events, step_event, traces_event
from worker.recorder import Recorder
from worker.resume import NoCheckpointLeft, resume_checkpoint
from worker.uploads import StoreUnavailable

SPEC = short_spec(checkpoints={"every_steps": 2, "keep_last": 2})
ANOTHER = short_spec(checkpoints={"every_steps": 2, "keep_last": 2}, seed=1)


@pytest.fixture
def claimed(database: Database) -> Claim:
    """A run at its first attempt."""
    queue_runs(database, SPEC)
    return claim(database)


@pytest.fixture
def run_folder(s3_store: S3Store, claimed: Claim) -> Path:
    """Its folder on this machine."""
    return s3_store.run_dir / claimed.run_id


def record_all(recorder: Recorder) -> None:
    while recorder.advance() or recorder.is_storing:
        time.sleep(0.01)


def keys(bucket: S3Bucket) -> list[str]:
    return [one.key for one in bucket.listed("")]


def checkpoint_rows(database: Database) -> list[Checkpoint]:
    with database.read() as session:
        return list(session.scalars(select(Checkpoint).order_by(Checkpoint.step)))


def test_files_are_stored_before_they_are_recorded(
    database: Database, claimed: Claim, s3_store: S3Store, run_folder: Path
) -> None:
    events = [
        *start_events(1),
        step_event(1),
        checkpoint_event(run_folder, 1, 2, spec=SPEC),
        step_event(3),
        traces_event(3),
    ]
    write_events(run_folder, 1, events)
    (run_folder / "attempts/1/traces").mkdir()
    (run_folder / "attempts/1/traces/x.parquet").write_bytes(b"traces")
    recorder = Recorder(database, claimed, run_folder, store=s3_store)
    seen = []
    while recorder.advance() or recorder.is_storing:
        stored = any(key.endswith("manifest.json") for key in keys(s3_store.bucket))
        seen.append((stored, len(checkpoint_rows(database))))
        time.sleep(0.01)
    # The row never came before the manifest, and the manifest never before the other files.
    assert (False, 1) not in seen
    (row,) = checkpoint_rows(database)
    assert row.removed_at is None
    folder = f"{claimed.run_id}/attempts/1/checkpoints/step-2/{row.manifest_sha256[:16]}"
    names = {file["name"] for file in row.files} | {"manifest.json"}
    assert set(keys(s3_store.bucket)) == {f"{folder}/{name}" for name in names} | {
        f"{claimed.run_id}/attempts/1/traces/x.parquet"
    }
    for file in row.files:
        assert s3_store.bucket.facts(f"{folder}/{file['name']}") == (file["num_bytes"], file["sha256"])
    with database.read() as session:
        assert len(session.scalars(select(Rollout)).all()) == 1


def test_an_attempt_on_another_disk_goes_on_from_what_is_stored(
    database: Database, claimed: Claim, s3_store: S3Store, run_folder: Path, tmp_path: Path
) -> None:
    write_events(run_folder, 1, [*start_events(1), *(checkpoint_event(run_folder, 1, at, spec=SPEC) for at in (2, 4))])
    record_all(Recorder(database, claimed, run_folder, store=s3_store))
    elsewhere = S3Store(s3_store.bucket, tmp_path / "another-machine")
    assert resume_checkpoint(database, claimed, elsewhere, lambda: None) == Path("attempts/1/checkpoints/step-4")
    here, there = (
        run_folder / "attempts/1/checkpoints/step-4",
        elsewhere.run_dir / claimed.run_id / "attempts/1/checkpoints/step-4",
    )
    assert {path.relative_to(here): path.read_bytes() for path in here.rglob("*") if path.is_file()} == {
        path.relative_to(there): path.read_bytes() for path in there.rglob("*") if path.is_file()
    }
    # Damage on the disk is mended from the store, without a word; damage in the store leads to the one before.
    (there / "model.safetensors").write_bytes(b"nonsense")
    assert resume_checkpoint(database, claimed, elsewhere, lambda: None) == Path("attempts/1/checkpoints/step-4")
    assert (there / "model.safetensors").read_bytes() == (here / "model.safetensors").read_bytes()
    shutil.rmtree(elsewhere.run_dir)
    newest = checkpoint_rows(database)[-1]
    nonsense = b"x" * newest.files[0]["num_bytes"]
    (tmp_path / "nonsense").write_bytes(nonsense)
    key = f"{claimed.run_id}/attempts/1/checkpoints/step-4/{newest.manifest_sha256[:16]}/{newest.files[0]['name']}"
    s3_store.bucket.put(
        key, tmp_path / "nonsense", sha256=hashlib.sha256(nonsense).hexdigest(), num_bytes=len(nonsense)
    )
    assert resume_checkpoint(database, claimed, elsewhere, lambda: None) == Path("attempts/1/checkpoints/step-2")
    damage = checkpoint_rows(database)[-1].damage
    assert "has another content in s3://" in str(damage)
    for one in s3_store.bucket.listed(f"{claimed.run_id}/"):
        s3_store.bucket.remove(one.key)
    shutil.rmtree(elsewhere.run_dir)
    with pytest.raises(NoCheckpointLeft):
        resume_checkpoint(database, claimed, elsewhere, lambda: None)


def test_a_bucket_that_is_not_there_is_held_against_no_checkpoint(
    database: Database, claimed: Claim, s3_store: S3Store, run_folder: Path, tmp_path: Path
) -> None:
    write_events(run_folder, 1, [*start_events(1), checkpoint_event(run_folder, 1, 2, spec=SPEC)])
    record_all(Recorder(database, claimed, run_folder, store=s3_store))
    settings = s3_store.bucket.settings.model_copy(update={"url": "s3://no-such-bucket/x"})
    elsewhere = S3Store(S3Bucket(settings), tmp_path / "another-machine")
    with pytest.raises(StoreProblem, match="no-such-bucket"):
        resume_checkpoint(database, claimed, elsewhere, lambda: None)
    assert [row.damage for row in checkpoint_rows(database)] == [None]


def test_what_the_spec_does_not_keep_leaves_the_store(
    database: Database, claimed: Claim, s3_store: S3Store, run_folder: Path
) -> None:
    events = [checkpoint_event(run_folder, 1, step, spec=SPEC) for step in (2, 4, 6, 8)]
    write_events(run_folder, 1, [*start_events(1), *events])
    record_all(Recorder(database, claimed, run_folder, store=s3_store))
    kept = {f"step-{row.step}" for row in checkpoint_rows(database) if row.removed_at is None}
    assert {key.split("/")[4] for key in keys(s3_store.bucket)} == kept
    assert {path.name for path in (run_folder / "attempts/1/checkpoints").iterdir()} == kept
    assert kept != {"step-2", "step-4", "step-6", "step-8"}


def test_a_store_that_fails_is_waited_for_and_nothing_is_lost(
    database: Database, claimed: Claim, s3_store: S3Store, run_folder: Path
) -> None:
    away = S3Store(
        S3Bucket(s3_store.bucket.settings.model_copy(update={"url": "s3://no-such-bucket/x"})), s3_store.run_dir
    )
    write_events(run_folder, 1, [*start_events(1), checkpoint_event(run_folder, 1, 2, spec=SPEC)])
    recorder = Recorder(database, claimed, run_folder, store=away, patience_seconds=4)
    with pytest.raises(
        StoreUnavailable, match=r"There is no bucket 'no-such-bucket' at the store at http.*create it, or"
    ):
        record_all(recorder)
    assert checkpoint_rows(database) == []
    with database.read() as session:
        (warning,) = session.scalars(select(Event.payload).where(Event.kind == "warning"))
    assert warning["code"] == "store_unavailable"
    assert "no bucket 'no-such-bucket'" in warning["message"]
    # The same disk, a store that works: it is all there.
    recorder = Recorder(database, claimed, run_folder, store=s3_store)
    recorder._offset = offset_of(database, claimed)
    record_all(recorder)
    assert [row.step for row in checkpoint_rows(database)] == [2]


def test_a_step_that_is_saved_again_and_a_zombie_write_over_nothing(
    database: Database, claimed: Claim, s3_store: S3Store, run_folder: Path
) -> None:
    write_events(run_folder, 1, [*start_events(1), checkpoint_event(run_folder, 1, 2, spec=SPEC)])
    record_all(Recorder(database, claimed, run_folder, store=s3_store))
    first = {key: s3_store.bucket.facts(key) for key in keys(s3_store.bucket)}
    # At a stop the step is saved again, with another state.
    shutil.rmtree(run_folder / "attempts/1/checkpoints/step-2")
    again = checkpoint_event(run_folder, 1, 2, spec=ANOTHER)
    write_events(run_folder, 1, [again])
    zombie = Recorder(database, claimed, run_folder, store=s3_store)
    zombie._offset = offset_of(database, claimed)
    set_columns(database, claimed.run_id, lease_until=None)
    with database.write() as session:
        reap(session, lambda owner: False)
    with pytest.raises(LeaseLost):
        record_all(zombie)
    assert first.items() <= {key: s3_store.bucket.facts(key) for key in keys(s3_store.bucket)}.items()
    assert len(keys(s3_store.bucket)) == 2 * len(first), (
        "what the zombie has stored lies beside, and no row leads to it"
    )
    assert [row.manifest_sha256[:16] for row in checkpoint_rows(database)] == [next(iter(first)).split("/")[5]]


def test_a_checkpoint_that_the_disk_has_damaged_is_not_stored_and_not_offered(
    database: Database, claimed: Claim, s3_store: S3Store, run_folder: Path
) -> None:
    event = checkpoint_event(run_folder, 1, 2, spec=SPEC)
    path = run_folder / "attempts/1" / event.path / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))
    write_events(run_folder, 1, [*start_events(1), event])
    record_all(Recorder(database, claimed, run_folder, store=s3_store))
    (row,) = checkpoint_rows(database)
    assert row.removed_at is not None
    assert not any(key.endswith(("manifest.json", "model.safetensors")) for key in keys(s3_store.bucket))


def offset_of(database: Database, claimed: Claim) -> int:
    with database.read() as session:
        return session.scalars(select(Attempt.event_offset).where(Attempt.run_id == claimed.run_id)).one()
