"""Checkpoints in a bucket leave by the API: a file by an address of the store, the folder as a stream, a rollout verified."""

import hashlib
import io
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest
from sqlalchemy import select, update

from backend.artifacts import Artifact, StoredFile
from backend.database import Database
from backend.ids import new_id
from backend.queries.checkpoints import checkpoint
from backend.records import Checkpoint, Rollout
from backend.s3_bucket import S3Bucket
from backend.s3_store import S3Store
from dashboard.api_client import ApiClient
from engine.token_trace import write_traces
from incipit.download import checkpoint_download
from tests import databases
from tests.access import SIGNED_IN, TOKEN
from tests.api_process import ApiProcess
from tests.backend.checkpoints import FENCE, FILES, commit_checkpoint
from tests.dashboard.fake_traces import trace
from tests.s3.object_store import SECRET_KEY, environment_of, make_bucket, store_settings
from tests.worker.runs import queue_runs, short_spec
from tests.worker.sample_events import traces_event

WEIGHTS = FILES["model.safetensors"]
_LARGE_BYTES = 128 * 1024**2
_MAX_GROWTH_BYTES = 48 * 1024**2


class Served(NamedTuple):
    """An API that has its checkpoints in a bucket and nothing on its disk."""

    api: ApiProcess
    url: str
    """Of the database."""
    client: httpx.Client
    database: Database
    store: S3Store
    run_id: str
    checkpoint_id: str

    @property
    def address(self) -> str:
        return f"/api/v1/checkpoints/{self.checkpoint_id}"


@pytest.fixture(scope="module")
def served_api(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiProcess, str, S3Store]]:
    """An API with a bucket of its own, its database's address, and the store with the disk of a worker."""
    home = tmp_path_factory.mktemp("home")
    url = databases.sqlite_copy(home)
    bucket = make_bucket(store_settings(endpoint, home, bucket=f"runs-{new_id().lower()}"))
    api = ApiProcess(url, INCIPIT_HOME=str(home), INCIPIT_LOCAL_TOKEN=TOKEN, **environment_of(bucket.settings))
    api.start()
    yield api, url, S3Store(bucket, tmp_path_factory.mktemp("worker") / "runs")
    api.kill()


@pytest.fixture
def served(served_api: tuple[ApiProcess, str, S3Store]) -> Iterator[Served]:
    api, url, store = served_api
    database = Database(url)
    (run_id,) = queue_runs(database, short_spec())
    checkpoint_id = commit_checkpoint(database, store.run_dir, run_id)
    keep(store, database, checkpoint_id)
    shutil.rmtree(store.run_dir)
    with httpx.Client(base_url=api.url, timeout=60, headers=SIGNED_IN) as client:
        yield Served(api, url, client, database, store, run_id, checkpoint_id)
    database.close()


def keep(store: S3Store, database: Database, checkpoint_id: str) -> None:
    with database.read() as session:
        row = session.scalars(select(Checkpoint).where(Checkpoint.id == checkpoint_id)).one()
    artifact = Artifact(row.run_id, row.fence, row.path, row.manifest_sha256)
    manifest = (store.local(artifact) / "manifest.json").stat().st_size
    files = [StoredFile(**file) for file in row.files]
    store.keep(artifact, [*files, StoredFile("manifest.json", manifest, row.manifest_sha256)], lambda _: None)


def test_a_file_comes_from_the_stores_own_server(served: Served) -> None:
    told = served.client.get(f"{served.address}/files/model.safetensors")
    assert (told.status_code, told.content) == (302, b"")
    assert told.headers["etag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert told.headers["cache-control"] == "no-store"
    assert SECRET_KEY not in told.headers["location"]
    whole = httpx.get(told.headers["location"])
    assert whole.content == WEIGHTS
    assert whole.headers["content-disposition"] == 'attachment; filename="short-step-20-model.safetensors"'
    # As a client that follows: with its Range, without our key.
    part = served.client.get(
        f"{served.address}/files/model.safetensors", headers={"Range": "bytes=100000-"}, follow_redirects=True
    )
    assert (part.status_code, part.content) == (206, WEIGHTS[100_000:])
    assert "authorization" not in part.request.headers
    known = {"If-None-Match": told.headers["etag"]}
    assert served.client.get(f"{served.address}/files/model.safetensors", headers=known).status_code == 304
    beyond = served.client.get(f"{served.address}/files/model.safetensors", headers={"Range": "bytes=400000-"})
    assert beyond.status_code == 416
    assert served.client.get(f"{served.address}/files/nothing.bin").status_code == 404
    link = served.client.post(f"{served.address}/link", json={}).json()
    signed = httpx.get(served.api.url + link["file_urls"]["config.json"], follow_redirects=True)
    assert signed.content == FILES["config.json"]


def test_the_folder_comes_as_one_tar(served: Served) -> None:
    response = served.client.get(f"{served.address}/archive")
    assert int(response.headers["content-length"]) == len(response.content)
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        content = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    assert content.pop("short-step-20/manifest.json")
    assert content == {f"short-step-20/{name}": data for name, data in FILES.items()}


def test_the_command_line_resumes_a_download_from_the_store(served: Served, tmp_path: Path) -> None:
    with served.database.read() as session:
        found = checkpoint(session, served.checkpoint_id)
    assert found is not None
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors.part").write_bytes(WEIGHTS[:100_000])
    with ApiClient(served.api.url, token=TOKEN) as client:
        download = checkpoint_download(client, found[0], tmp_path / "out")
        download.run()
    assert {name: (tmp_path / "out" / name).read_bytes() for name in FILES} == FILES
    num_bytes = sum(map(len, FILES.values())) - 100_000
    assert num_bytes < download.fetched_bytes < num_bytes + 2000  # and the manifest


def test_what_the_store_has_lost_is_said_to_be_gone(served: Served) -> None:
    for one in list(served.store.bucket.listed(served.run_id)):
        served.store.bucket.remove(one.key)
    for asked in ("files/model.safetensors", "archive"):
        response = served.client.get(f"{served.address}/{asked}")
        assert response.status_code == 410
        assert "is not in s3://" in response.json()["detail"]


@pytest.mark.full
def test_a_store_that_is_away_is_named(served: Served, tmp_path: Path) -> None:
    nowhere = served.store.bucket.settings.model_copy(update={"endpoint": "http://127.0.0.1:9"})
    api = ApiProcess(served.url, INCIPIT_HOME=str(tmp_path / "h"), INCIPIT_LOCAL_TOKEN=TOKEN, **environment_of(nowhere))
    with (tmp_path / "log").open("w") as log:
        api.start(log)
        response = httpx.get(f"{api.url}{served.address}/files/config.json", headers=SIGNED_IN, timeout=60)
        deadline = time.monotonic() + 60
        while (health := httpx.get(f"{api.url}/readyz").json())["store"] != "down" and time.monotonic() < deadline:
            time.sleep(0.2)
        api.kill()
    assert response.status_code == 503
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"].startswith(
        "The store at http://127.0.0.1:9 does not answer (EndpointConnectionError"
    )
    # Whoever is not signed in learns that it is so, and the log why.
    assert (health["status"], health["store"]) == ("degraded", "down")
    assert any("The store of checkpoints does not work" in one for one in health["warnings"])
    assert "127.0.0.1:9" not in str(health)
    assert "The store at http://127.0.0.1:9 does not answer" in (tmp_path / "log").read_text()
    assert SECRET_KEY not in (tmp_path / "log").read_text()


def test_a_rollout_opens_from_the_store_and_a_damaged_one_does_not(served: Served, tmp_path: Path) -> None:
    write_traces(tmp_path / "x.parquet", [trace(12)])
    content = (tmp_path / "x.parquet").read_bytes()
    key = f"{served.run_id}/attempts/{FENCE}/traces/x.parquet"
    bucket: S3Bucket = served.store.bucket
    bucket.put(key, tmp_path / "x.parquet", sha256=hashlib.sha256(content).hexdigest(), num_bytes=len(content))
    with served.database.write() as session:
        event = traces_event(3)
        session.add(
            Rollout(
                run_id=served.run_id, fence=FENCE, step=3, subject="student", horizon=4, path=event.path,
                **event.rollouts[0].model_dump(),
            )
        )  # fmt: skip
        session.flush()
        rollout_id = session.scalars(select(Rollout.id).where(Rollout.run_id == served.run_id)).one()
    opened = served.client.get(f"/api/v1/rollouts/{rollout_id}")
    assert opened.status_code == 200, opened.text
    assert opened.json()["trace"]["token_ids"] == trace(12).token_ids
    (tmp_path / "x.parquet").write_bytes(content[:-1] + b"x")
    bucket._call("test", "put_object", Key=bucket._full(key), Body=content[:-9] + b"x" * 9,
                 Metadata={"sha256": hashlib.sha256(content).hexdigest()})  # fmt: skip
    assert served.client.get(f"/api/v1/rollouts/{rollout_id}").status_code == 410


def test_a_large_folder_leaves_without_the_api_growing(served: Served, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(_LARGE_BYTES)
    with (tmp_path / "large").open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    with served.database.read() as session:
        row = session.scalars(select(Checkpoint).where(Checkpoint.id == served.checkpoint_id)).one()
    key = f"{served.run_id}/attempts/{FENCE}/{row.path}/{row.manifest_sha256[:16]}/model.safetensors"
    served.store.bucket.put(key, tmp_path / "large", sha256=sha256, num_bytes=_LARGE_BYTES)
    with served.database.write() as session:
        files = [{"name": "model.safetensors", "num_bytes": _LARGE_BYTES, "sha256": sha256}]
        session.execute(update(Checkpoint).where(Checkpoint.id == served.checkpoint_id).values(files=files))
    process = psutil.Process(served.api.pid)
    served.client.get(f"{served.address}/files/manifest.json")  # all code is loaded
    before, most, received = process.memory_info().rss, 0, 0
    with served.client.stream("GET", f"{served.address}/archive") as response:
        for chunk in response.iter_raw(1024 * 1024):
            received += len(chunk)
            most = max(most, process.memory_info().rss)
    assert received == int(response.headers["content-length"]) > _LARGE_BYTES
    assert most - before < _MAX_GROWTH_BYTES
