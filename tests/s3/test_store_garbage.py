"""What no record speaks of leaves the bucket and the workers' disks when it is old; all else stays."""

import time
from pathlib import Path

import pytest
from sqlalchemy import update

from backend.database import Database
from backend.queries.claims import Claim
from backend.records import Checkpoint
from backend.s3_bucket import S3Bucket
from backend.s3_store import S3Store
from tests.s3.test_recorder import keys, record_all
from tests.worker.runs import claim, queue_runs, set_columns, short_spec, write_events
from tests.worker.sample_events import checkpoint_event, start_events, traces_event
from tests.worker.test_garbage import make_old, next_attempt
from worker.recorder import Recorder
from worker.store_garbage import LocalCopies, StoreGarbage

SPEC = short_spec(checkpoints={"every_steps": 1, "keep_last": 9})


@pytest.fixture
def claimed(database: Database, s3_store: S3Store) -> Claim:
    """A run at its first attempt, with checkpoints of the steps 1 and 2 and traces of step 2, all recorded."""
    queue_runs(database, SPEC)
    claimed = claim(database)
    folder = s3_store.run_dir / claimed.run_id
    events = [*start_events(1), *(checkpoint_event(folder, 1, step, spec=SPEC) for step in (1, 2)), traces_event(2)]
    write_events(folder, 1, events)
    (folder / "attempts/1/traces").mkdir()
    (folder / "attempts/1/traces/x.parquet").write_bytes(b"traces")
    record_all(Recorder(database, claimed, folder, store=s3_store))
    return claimed


def litter(bucket: S3Bucket, run_id: str, fence: int, tmp_path: Path) -> set[str]:
    """Objects that no record speaks of: of a checkpoint, of one that was saved again, of traces."""
    content = tmp_path / "litter"
    content.write_bytes(b"x")
    sha256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    names = {
        "checkpoints/step-9/0000000000000000/a.bin",
        "checkpoints/step-2/0000000000000000/a.bin",
        "traces/y.parquet",
    }
    added = {f"{run_id}/attempts/{fence}/{name}" for name in names}
    for key in added:
        bucket.put(key, content, sha256=sha256, num_bytes=1)
    return added


def test_only_what_is_old_unknown_and_of_a_settled_attempt_goes(
    database: Database, claimed: Claim, s3_store: S3Store, tmp_path: Path
) -> None:
    bucket, folder = s3_store.bucket, s3_store.run_dir / claimed.run_id
    kept = set(keys(bucket))
    unknown = litter(bucket, claimed.run_id, 1, tmp_path)
    another = litter(bucket, "another-installation", 1, tmp_path)
    collector = StoreGarbage(database, s3_store, min_age_seconds=0)
    time.sleep(1.1)  # the store's times are whole seconds
    assert collector.collect() == 0, "the attempt lives"
    again = next_attempt(database, folder)
    assert StoreGarbage(database, s3_store).collect() == 0, "too young"
    assert collector.collect() == len(unknown)
    assert set(keys(bucket)) == kept | another
    assert again.fence > 1
    with database.write() as session:
        session.execute(update(Checkpoint).where(Checkpoint.step == 1).values(removed_at=Checkpoint.created_at))
        session.execute(
            update(Checkpoint).where(Checkpoint.step == 2).values(removed_at=Checkpoint.created_at, pinned=True)
        )
    collector.collect()
    assert {key for key in keys(bucket) if "/step-" in key} & kept == {key for key in kept if "/step-2/" in key}
    upload = bucket._call("test", "create_multipart_upload", Key=bucket._full("r/x"))["UploadId"]
    bucket._call("test", "upload_part", Key=bucket._full("r/x"), UploadId=upload, PartNumber=1, Body=b"x")
    time.sleep(1.1)
    collector.collect()
    assert list(bucket.unfinished_uploads()) == []


def test_copies_leave_a_disk_when_nobody_has_wanted_them_for_long(
    database: Database, claimed: Claim, s3_store: S3Store
) -> None:
    folder = s3_store.run_dir / claimed.run_id
    copies = LocalCopies(database, s3_store)
    make_old(folder)
    assert copies.drop() == 0, "somebody works on it"
    again = next_attempt(database, folder, is_recorded=False)
    assert again.fence > 1
    set_columns(database, claimed.run_id, state="paused")
    make_old(folder)
    assert copies.drop() == 0, "of a lost attempt something may not be recorded yet"
    set_columns(database, claimed.run_id, state="running")
    write_events(folder, again.fence, start_events(again.fence, resumed_from_step=2))
    record_all(Recorder(database, again, folder, store=s3_store))
    set_columns(database, claimed.run_id, state="paused")
    (folder / "attempts/1/checkpoints/step-2/config.json").touch()
    assert copies.drop() > 0
    assert [path.name for path in folder.glob("attempts/1/checkpoints/*")] == ["step-2"], (
        "one fresh file makes it young"
    )
    assert (folder / "attempts/1/events.jsonl").exists()
