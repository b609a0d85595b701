"""Exports through the API, on both databases: asked for, fetched, let go, refused before anything is queued."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.app import create_app
from backend.database import Database
from backend.exports import QueuedExport
from backend.limits import Limits
from backend.queries import analyses as machinery
from backend.records import Evaluation
from backend.settings import Settings
from engine.analysis_spec import AnalysisProgress
from engine.export_spec import ExportResult
from engine.findings import Finding
from engine.manifest import ManifestFile
from tests.access import SIGNED_IN
from tests.backend.checkpoints import attempt_folder, commit_checkpoint
from tests.backend.conftest import ADDRESS

Document = dict[str, Any]
_PATH = "/api/v1/exports"
_FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000}


@pytest.fixture
def checkpoint_id(database: Database, settings: Settings, run_id: str) -> str:
    return commit_checkpoint(database, settings.run_dir, run_id)


@pytest.fixture
def asked(client: TestClient, checkpoint_id: str) -> Document:
    response = client.post(_PATH, json={"checkpoint_id": checkpoint_id, "export": {"kind": "merged"}})
    assert response.status_code == 201, response.json()
    found: Document = response.json()
    assert response.headers["Location"] == f"{_PATH}/{found['id']}"
    return found


def claimed(database: Database) -> machinery.AnalysisClaim:
    with database.write() as session:
        claim = machinery.claim_analysis(session, "a")
    assert claim is not None
    return claim


def end(database: Database, claim: machinery.AnalysisClaim, answer: ExportResult | list[Finding]) -> None:
    with database.write() as session:
        assert machinery.end_analysis(session, claim, answer)


def make(database: Database, settings: Settings) -> None:
    """What a worker does with the export that waits."""
    claim = claimed(database)
    folder = settings.export_dir / claim.analysis_id / str(claim.fence)
    folder.mkdir(parents=True)
    for name, content in _FILES.items():
        (folder / name).write_bytes(content)
    files = [
        ManifestFile(name=name, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in _FILES.items()
    ]
    end(database, claim, ExportResult(kind="merged", files=files, is_kept=True, notes=["Merged."], seconds=1.5))


def test_an_export_is_queued_reported_on_made_and_fetched(
    client: TestClient, database: Database, settings: Settings, asked: Document, checkpoint_id: str
) -> None:
    address = f"{_PATH}/{asked['id']}"
    assert (asked["state"], asked["queue_position"], asked["export"]["dtype"]) == ("queued", 1, "saved")
    assert "as it is queued" in client.get(f"{address}/archive").json()["detail"]
    claim = claimed(database)
    with database.write() as session:
        machinery.report_progress(session, claim, AnalysisProgress(done=0.5, detail="writing: 1 of 2 MiB"))
    at_work = client.get(address).json()
    assert (at_work["state"], at_work["done"], at_work["detail"]) == ("running", 0.5, "writing: 1 of 2 MiB")
    assert at_work["eta_seconds"] >= 0
    with database.write() as session:
        machinery.give_back_analysis(session, claim)
    make(database, settings)
    done = client.get(address).json()
    assert (done["state"], done["result"]["notes"]) == ("succeeded", ["Merged."])
    assert client.get(_PATH, params={"checkpoint_id": checkpoint_id}).json() == [done]
    assert client.get(_PATH, params={"checkpoint_id": "other"}).json() == []
    for listed in ("/api/v1/analyses", "/api/v1/playground/questions"):
        assert client.get(listed).json() == []
    assert client.get(f"/api/v1/analyses/{asked['id']}").status_code == 404


def test_its_files_come_with_range_hash_and_signature(
    client: TestClient, database: Database, settings: Settings, asked: Document
) -> None:
    make(database, settings)
    address = f"{_PATH}/{asked['id']}"
    part = client.get(f"{address}/files/model.safetensors", headers={"Range": "bytes=7-13"})
    assert (part.status_code, part.content) == (206, b"weights")
    assert part.headers["ETag"] == f'"{hashlib.sha256(_FILES["model.safetensors"]).hexdigest()}"'
    assert client.get(f"{address}/files/manifest.json").status_code == 404
    link = client.post(f"{address}/link").json()
    stranger = TestClient(client.app, base_url=ADDRESS)
    assert stranger.get(link["file_urls"]["config.json"]).content == b"{}"
    archive = stranger.get(link["archive_url"])
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as tar:
        assert {Path(name).name: tar.extractfile(name).read() for name in tar.getnames()} == _FILES  # type: ignore[union-attr]
    changed = link["archive_url"].replace(asked["id"], f"{asked['id'][:-1]}{'0' if asked['id'][-1] != '0' else '1'}")
    assert stranger.get(changed).status_code == 403
    # A checkpoint's link is none to an export, whatever its id.
    assert stranger.get(link["archive_url"].replace("/exports/", "/")).status_code == 403
    folder = next(settings.export_dir.glob("*/*"))
    (folder / "config.json").unlink()
    gone = client.get(f"{address}/archive")
    assert (gone.status_code, "export the checkpoint again" in gone.json()["detail"]) == (410, True)


def test_files_that_are_let_go_cannot_be_fetched(
    client: TestClient, database: Database, settings: Settings, asked: Document
) -> None:
    make(database, settings)
    address = f"{_PATH}/{asked['id']}"
    let_go = client.post(f"{address}/remove").json()
    assert let_go["removed_at"] is not None
    assert let_go["result"]["files"], "what it was stays in the list"
    answer = client.get(f"{address}/files/config.json")
    assert (answer.status_code, "they were let go" in answer.json()["detail"]) == (404, True)


def test_a_cancelled_export_takes_no_result(client: TestClient, database: Database, asked: Document) -> None:
    claim = claimed(database)
    assert client.post(f"{_PATH}/{asked['id']}/cancel").json()["state"] == "cancelled"
    with database.write() as session:
        assert not machinery.end_analysis(session, claim, [Finding(field="", message="late")])
    found = client.get(f"{_PATH}/{asked['id']}").json()
    assert (found["state"], found["findings"]) == ("cancelled", [])


def test_the_worker_is_told_folder_history_and_manifest(
    client: TestClient, database: Database, settings: Settings, run_id: str, checkpoint_id: str
) -> None:
    for subject, step, accuracy in (("base", 0, 0.25), ("student", 20, 0.75), ("student", 40, 0.5)):
        with database.write() as session:
            session.add(
                Evaluation(
                    run_id=run_id, subject=subject, split="dev", step=step, fence=3, num_prompts=100, horizon=224,
                    metrics={"accuracy": accuracy}, training_flops=1e12 * step, training_seconds=1.0, is_best=False,
                )
            )  # fmt: skip
    choice = {"kind": "hub", "repository": "lab/prefix-8"}
    assert client.post(_PATH, json={"checkpoint_id": checkpoint_id, "export": choice}).status_code == 201
    claim = claimed(database)
    assert isinstance(claim.spec, QueuedExport)
    spec = claim.spec.spec
    assert spec.id == claim.analysis_id
    assert spec.export.private  # type: ignore[union-attr]
    assert (spec.card.metrics, spec.card.base_metrics) == ({"accuracy": 0.75}, {"accuracy": 0.25})
    assert (spec.card.step, spec.card.num_prompts, spec.card.training_flops) == (20, 100, 2e13)
    folder = attempt_folder(settings.run_dir, run_id) / "checkpoints" / "step-20"
    assert settings.home / spec.folder.removeprefix("home:") == folder
    assert spec.manifest_sha256 == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


_REFUSED: list[tuple[Document, str, str]] = [
    ({"kind": "onnx"}, "export", "has kind 'onnx' but kind must be one of 'merged', 'gguf', 'hub'"),
    ({"kind": "gguf", "file_type": "q2_k"}, "export.file_type", "must be one of 'f32', 'f16', 'bf16' or 'q8_0'"),
    ({"kind": "merged", "dtype": "int8"}, "export.dtype", "must be one of 'saved', 'float32', 'bfloat16' or 'float16'"),
    ({"kind": "hub"}, "export.repository", "is missing"),
    ({"kind": "hub", "repository": "prefix-8"}, "export.repository", "a repository is named OWNER/NAME"),
    ({"kind": "hub", "repository": "lab/../x"}, "export.repository", "a repository is named OWNER/NAME"),
    ({"kind": "hub", "repository": "lab/a--b"}, "export.repository", "the hub takes no --"),
    ({"kind": "hub", "repository": f"lab/{'a' * 99}"}, "export.repository", "has 103 characters and the hub takes 96"),
    ({"kind": "hub", "repository": "lab/x", "token": "hf_secret"}, "export.token", "is not a field"),
]


def test_what_cannot_be_asked_for_is_named_at_its_field(client: TestClient, checkpoint_id: str) -> None:
    for choice, field, words in _REFUSED:
        response = client.post(_PATH, json={"checkpoint_id": checkpoint_id, "export": choice})
        assert response.status_code == 422
        (finding,) = response.json()["errors"]
        assert finding["field"] == field
        assert words in finding["message"]


def test_a_checkpoint_that_is_gone_or_damaged_is_refused(
    client: TestClient, settings: Settings, run_id: str, checkpoint_id: str
) -> None:
    def refused(id: str) -> str:
        response = client.post(_PATH, json={"checkpoint_id": id, "export": {"kind": "merged"}})
        assert response.status_code == 422
        (finding,) = response.json()["errors"]
        assert finding["field"] == "checkpoint_id"
        message: str = finding["message"]
        return message

    assert "does not exist or was removed" in refused("nothing")
    (attempt_folder(settings.run_dir, run_id) / "checkpoints" / "step-20" / "model.safetensors").unlink()
    assert "model.safetensors of checkpoint" in refused(checkpoint_id)


def test_a_repeated_request_makes_one_export(client: TestClient, checkpoint_id: str) -> None:
    body = {"checkpoint_id": checkpoint_id, "export": {"kind": "gguf"}}
    answers = [client.post(_PATH, json=body, headers={"Idempotency-Key": "once"}) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert len(client.get(_PATH).json()) == 1


@pytest.fixture
def narrow(settings: Settings, checkpoint_id: str) -> Iterator[TestClient]:
    """The API with room for one export in the queue and the files of one."""
    assert checkpoint_id
    changed = settings.model_copy(update={"limits": Limits(exports_queued=1, exports_kept=1)})
    with ExitStack() as opened:
        yield opened.enter_context(TestClient(create_app(changed), base_url=ADDRESS, headers=SIGNED_IN))


def test_a_push_to_a_hub_lets_no_files_go_and_has_none_to_let_go(
    narrow: TestClient, database: Database, settings: Settings, checkpoint_id: str
) -> None:
    merged = {"checkpoint_id": checkpoint_id, "export": {"kind": "merged"}}
    kept = narrow.post(_PATH, json=merged).json()["id"]
    make(database, settings)
    hub = {"checkpoint_id": checkpoint_id, "export": {"kind": "hub", "repository": "lab/prefix-8"}}
    pushed = narrow.post(_PATH, json=hub).json()["id"]
    sent = ManifestFile(name="config.json", num_bytes=2, sha256="0" * 64)
    address = "https://hub.example/lab/prefix-8"
    end(
        database,
        claimed(database),
        ExportResult(kind="hub", files=[sent], is_kept=False, url=address, notes=[], seconds=1),
    )
    narrow.post(_PATH, json=merged)
    assert narrow.post(f"{_PATH}/{pushed}/remove").status_code == 200
    assert [narrow.get(f"{_PATH}/{id}").json()["removed_at"] for id in (kept, pushed)] == [None, None]
    assert narrow.get(f"{_PATH}/{kept}/files/config.json").status_code == 200


def test_the_queue_is_limited_and_the_oldest_files_are_let_go(
    narrow: TestClient, database: Database, settings: Settings, checkpoint_id: str
) -> None:
    body = {"checkpoint_id": checkpoint_id, "export": {"kind": "merged"}}
    ids = []
    for _ in range(2):
        ids.append(narrow.post(_PATH, json=body).json()["id"])
        full = narrow.post(_PATH, json=body)
        assert (full.status_code, "You have 1 exports in the queue" in full.json()["detail"]) == (409, True)
        make(database, settings)
    narrow.post(_PATH, json=body)
    removed = [narrow.get(f"{_PATH}/{id}").json()["removed_at"] is not None for id in ids]
    assert removed == [True, False]
    assert datetime.fromisoformat(narrow.get(f"{_PATH}/{ids[0]}").json()["removed_at"]) <= datetime.now(UTC)
