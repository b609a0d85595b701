"""A store moves into a bucket, from bucket to bucket and back, bit for bit; broken off it goes on; what is lost is named."""

import hashlib
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend.database import Database
from backend.ids import new_id
from backend.queries.stored import Stored, everything_stored
from backend.s3_bucket import S3Bucket
from backend.store_settings import StoreSettings
from incipit.cli import app
from incipit.store_move import CannotMove, Moved, StoreMove
from tests.backend.checkpoints import commit_checkpoint
from tests.s3.object_store import SECRET_KEY, environment_of, make_bucket
from tests.s3.test_recorder import keys
from tests.worker.runs import claim, queue_runs, short_spec, write_events
from tests.worker.sample_events import start_events, traces_event
from worker.recorder import Recorder


@pytest.fixture
def run_dir(home: Path, database: Database) -> Path:
    """A folder with two checkpoints and a file of traces."""
    (run_id,) = queue_runs(database, short_spec())
    for step in (10, 20):
        commit_checkpoint(database, home / "runs", run_id, step=step)
    folder = home / "runs" / run_id
    write_events(folder, 1, [*start_events(1), traces_event(2)])
    (folder / "attempts/1/traces").mkdir()
    (folder / "attempts/1/traces/x.parquet").write_bytes(b"traces")
    Recorder(database, claim(database), folder).advance()
    for step in (10, 20):  # the start of an attempt takes out what is behind it
        commit_checkpoint(database, home / "runs", run_id, step=step + 1)
    return home / "runs"


def everything(database: Database) -> list[Stored]:
    with database.read() as session:
        return everything_stored(session)


def moved(
    database: Database, source: str | Path, target: str | Path, settings: StoreSettings, *, dry: bool = False
) -> Moved:
    done: list[int] = []
    stored = everything(database)
    found = StoreMove(str(source), str(target), settings).run(stored, done.append, dry=dry)
    assert sum(done) >= sum(one.num_bytes for one in stored)
    return found


def content(run_dir: Path, stored: list[Stored]) -> dict[str, bytes]:
    """Every file that the database speaks of."""
    found = {}
    for one in stored:
        path = run_dir / one.artifact.name
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file():
                found[file.relative_to(run_dir).as_posix()] = file.read_bytes()
    return found


def test_into_a_bucket_to_another_and_back(database: Database, run_dir: Path, bucket: S3Bucket, tmp_path: Path) -> None:
    stored = everything(database)
    before = content(run_dir, stored)
    settings = bucket.settings
    dry = moved(database, run_dir, settings.url, settings, dry=True)
    assert (dry.num_copied, dry.num_there, keys(bucket)) == (len(stored), 0, [])
    first = moved(database, run_dir, settings.url, settings)
    assert (first.num_copied, first.num_there, first.lost) == (len(stored), 0, [])
    assert first.num_bytes == sum(map(len, before.values()))
    again = moved(database, run_dir, settings.url, settings)
    assert (again.num_copied, again.num_there, again.num_bytes) == (0, len(stored), 0)
    other = settings.model_copy(update={"url": f"s3://runs-{new_id().lower()}/elsewhere"})
    make_bucket(other)
    assert moved(database, settings.url, other.url, settings).num_copied == len(stored)
    assert moved(database, other.url, tmp_path / "back", settings).num_copied == len(stored)
    assert content(tmp_path / "back", stored) == before
    assert content(run_dir, stored) == before
    assert moved(database, other.url, tmp_path / "back", settings).num_there == len(stored)


def test_a_move_that_was_broken_off_goes_on_and_mends_what_is_missing(
    database: Database, run_dir: Path, bucket: S3Bucket
) -> None:
    stored = everything(database)

    def break_off(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        StoreMove(str(run_dir), bucket.settings.url, bucket.settings).run(stored, break_off)
    rest = moved(database, run_dir, bucket.settings.url, bucket.settings)
    assert rest.num_copied + rest.num_there == len(stored)
    (gone,) = [key for key in keys(bucket) if key.endswith("model.safetensors")][:1]
    bucket.remove(gone)
    mended = moved(database, run_dir, bucket.settings.url, bucket.settings)
    assert (mended.num_copied, mended.num_there) == (1, len(stored) - 1)
    assert gone in keys(bucket)


def test_what_the_old_store_has_lost_is_named_and_the_rest_moves(
    database: Database, run_dir: Path, bucket: S3Bucket
) -> None:
    first, second, *_ = everything(database)
    (run_dir / first.artifact.name / "model.safetensors").write_bytes(b"x")
    shutil.rmtree(run_dir / second.artifact.name)
    (run_dir / everything(database)[-1].artifact.name).unlink()
    found = moved(database, run_dir, bucket.settings.url, bucket.settings)
    assert [re.split(r": ", one)[0] for one in found.lost][:2] == [first.artifact.name, second.artifact.name]
    assert "model.safetensors has 1 bytes instead of" in found.lost[0]
    assert len(found.lost) == 3


def test_places_between_which_nothing_can_move_are_refused(
    database: Database, run_dir: Path, store: StoreSettings
) -> None:
    for source, target, said in (
        (run_dir, run_dir.parent / "other", "are both folders; copy the first with `rsync -a`"),
        (store.url, store.url, "is both the old and the new store"),
        ("/nowhere/runs", store.url, "There is no folder /nowhere/runs; name the one"),
        (run_dir, "s3://X", "INCIPIT_STORE__URL is 's3://X': the files of runs are kept in"),
    ):
        with pytest.raises(CannotMove, match=re.escape(said)):
            moved(database, source, target, store)


def test_the_command_says_what_to_change(
    database: Database, run_dir: Path, bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment_of(bucket.settings).items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, ["store", "move", str(run_dir), bucket.settings.url])
    assert done.exit_code == 0, done.output
    assert f"{len(everything(database))} copied and verified" in done.output
    assert f"INCIPIT_STORE__URL={bucket.settings.url}" in done.output
    missing = CliRunner().invoke(app, ["store", "move", str(run_dir), "s3://no-such-bucket"])
    assert missing.exit_code == 1
    assert "There is no bucket 'no-such-bucket' at" in missing.output
    assert SECRET_KEY not in done.output + missing.output


def test_uploaded_prompts_move_too(run_dir: Path, bucket: S3Bucket, tmp_path: Path) -> None:
    content = b'{"prompt": "k3"}\n'
    sha256 = hashlib.sha256(content).hexdigest()
    (run_dir.parent / "prompts").mkdir()
    (run_dir.parent / "prompts" / f"{sha256}.jsonl").write_bytes(content)
    uploads = [sha256, "0" * 64]
    for source, target in ((run_dir, bucket.settings.url), (bucket.settings.url, tmp_path / "elsewhere" / "runs")):
        for copied, there in ((1, 0), (0, 1)):
            found = StoreMove(str(source), str(target), bucket.settings).run([], lambda _: None, uploads=uploads)
            assert (found.num_copied, found.num_there, len(found.lost)) == (copied, there, 1)
    assert (tmp_path / "elsewhere" / "prompts" / f"{sha256}.jsonl").read_bytes() == content
