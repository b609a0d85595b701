"""Exports of an installation with a bucket: made on a worker's disk from a checkpoint that is not there, fetched from the bucket."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from backend.app import create_app
from backend.database import Database
from backend.exports import ExportCreate, QueuedExport
from backend.queries import analyses as queries
from backend.records import Checkpoint
from backend.s3_bucket import S3Bucket
from backend.s3_store import S3Store
from backend.settings import Settings
from engine.export_spec import MergedFolder
from engine.student import Student
from tests.access import SIGNED_IN
from tests.backend.checkpoints import commit_checkpoint
from tests.engine.exporting import asked, contents_of, saved_checkpoint, written_student
from tests.engine.models import tiny_model, tiny_spec
from tests.s3.test_downloads import keep
from tests.worker.runs import OWNER, queue_runs
from worker.analysis import work_on_analysis
from worker.engine_server import EngineServer
from worker.named_files import fetch_named
from worker.settings import WorkerSettings
from worker.slots import Slot
from worker.store_garbage import StoreGarbage
from worker.workplace import Workplace


@pytest.fixture
def checkpoint_id(database: Database, s3_store: S3Store, tmp_path: Path) -> str:
    """One whose files are in the bucket and on no disk."""
    student = written_student(tmp_path / "base")
    folder = saved_checkpoint(student, tmp_path)
    (run_id,) = queue_runs(database, student.spec)
    checkpoint_id = commit_checkpoint(database, s3_store.run_dir, run_id, contents=contents_of(folder))
    keep(s3_store, database, checkpoint_id)
    shutil.rmtree(s3_store.run_dir)
    return checkpoint_id


@pytest.fixture
def client(stored_settings: Settings) -> Iterator[TestClient]:
    app = create_app(stored_settings)
    with TestClient(app, base_url="http://127.0.0.1:8000", headers=SIGNED_IN, follow_redirects=False) as opened:
        yield opened


def test_an_export_goes_into_the_bucket_and_leaves_it_when_it_is_let_go(
    client: TestClient,
    database: Database,
    bucket: S3Bucket,
    s3_store: S3Store,
    checkpoint_id: str,
    engines: EngineServer | None,
    tmp_path: Path,
) -> None:
    home = tmp_path / "worker"
    home.mkdir()
    place = Workplace(
        database, home, home / "runs", WorkerSettings(), lambda: False, engine_server=engines,
        store=S3Store(bucket, home / "runs"),
    )  # fmt: skip
    wanted = client.post("/api/v1/exports", json={"checkpoint_id": checkpoint_id, "export": {"kind": "merged"}})
    assert wanted.status_code == 201, wanted.json()
    with database.write() as session:
        claim = queries.claim_analysis(session, OWNER)
    assert claim is not None
    work_on_analysis(claim, Slot(0, None), place)
    address = f"/api/v1/exports/{claim.analysis_id}"
    made = client.get(address).json()
    assert made["state"] == "succeeded", made["findings"]
    assert not list((home / "exports").glob("*"))
    told = client.get(f"{address}/files/model.safetensors")
    assert told.status_code == 302
    weights = next(file for file in made["result"]["files"] if file["name"] == "model.safetensors")
    assert len(httpx.get(told.headers["location"]).content) == weights["num_bytes"]
    archive = client.get(f"{address}/archive")
    assert archive.status_code == 200
    assert len(archive.content) > weights["num_bytes"]

    garbage = StoreGarbage(database, s3_store, min_age_seconds=0)
    garbage.collect()
    assert list(bucket.listed("exports/"))
    client.post(f"{address}/remove").raise_for_status()
    garbage.collect()
    assert not list(bucket.listed("exports/"))
    assert client.get(f"{address}/files/model.safetensors").status_code == 404


def test_the_checkpoint_that_an_exported_run_began_with_is_not_fetched(
    database: Database, bucket: S3Bucket, checkpoint_id: str, tmp_path: Path
) -> None:
    with database.read() as session:
        row = session.get_one(Checkpoint, checkpoint_id)
    stored = f"home:runs/{row.run_id}/attempts/{row.fence}/{row.path}"
    student = Student(tiny_model(), tiny_spec(student={"path": stored}))
    home = tmp_path / "worker"
    wanted = ExportCreate(checkpoint_id="later", export=MergedFolder())

    def on_disk_for(folder: str) -> list[Path]:
        spec = asked(student, Path(folder), {"kind": "merged"})
        store = S3Store(bucket, home / "runs")
        assert fetch_named(database, store, home, QueuedExport(asked=wanted, spec=spec, run_id="r"), lambda: None) == []
        return list(home.rglob("model.safetensors"))

    assert on_disk_for("home:runs/later/attempts/1/checkpoints/step-3") == []
    assert len(on_disk_for(stored)) == 1, "a checkpoint that is itself exported is"
