"""Uploaded prompts reach a worker that shares no folder with the API."""

from pathlib import Path

from fastapi.testclient import TestClient

from backend.app import create_app
from backend.artifacts import upload_key
from backend.database import Database
from backend.s3_bucket import S3Bucket
from backend.s3_store import S3Store
from backend.settings import Settings
from engine.uploaded_prompts import upload_path
from tests.access import SIGNED_IN
from tests.s3.test_recorder import keys
from tests.worker.runs import short_spec
from worker.named_files import fetch_named
from worker.store_garbage import StoreGarbage


def test_uploaded_prompts_are_stored_and_fetched(
    stored_settings: Settings, database: Database, bucket: S3Bucket, tmp_path: Path
) -> None:
    content = '{"prompt": "k3"}\n{"prompt": "m1"}\n'
    with TestClient(create_app(stored_settings), base_url="http://127.0.0.1:8000", headers=SIGNED_IN) as client:
        type_ = {"Content-Type": "application/octet-stream"}
        params = {"name": "mine.jsonl", "prompt": "prompt"}
        answered = client.post("/api/v1/prompt-files", params=params, content=content, headers=type_)
        assert answered.status_code == 201, answered.text
        stored = answered.json()
        sha256 = stored["reference"].removeprefix("upload:")
        assert keys(bucket) == [upload_key(sha256)]
        assert client.get("/readyz").json()["store"] == "bucket"
        there = S3Store(bucket, tmp_path / "worker" / "runs")
        fetch_named(
            database, there, tmp_path / "worker", short_spec(prompts={"path": stored["reference"]}), lambda: None
        )
        here = upload_path(stored_settings.home, sha256)
        assert upload_path(tmp_path / "worker", sha256).read_bytes() == here.read_bytes()
        fetch_named(
            database, there, tmp_path / "worker", short_spec(prompts={"path": f"upload:{'0' * 64}"}), lambda: None
        )
        collector = StoreGarbage(database, there, min_age_seconds=-2)
        assert collector.collect() == 0
        client.delete(f"/api/v1/prompt-files/{stored['id']}")
    assert collector.collect() == here.stat().st_size
    assert keys(bucket) == []
