"""Exports from the API to the file in somebody's hands: a real LoRA checkpoint, the real engine, and what is left behind."""

import io
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from fastapi.testclient import TestClient
from transformers import AutoModelForCausalLM

from backend.app import create_app
from backend.database import Database
from backend.queries import analyses as queries
from backend.settings import Settings
from engine.student import Student
from tests import databases
from tests.access import SIGNED_IN
from tests.backend.checkpoints import commit_checkpoint
from tests.engine.exporting import TOKENS, contents_of, saved_checkpoint, written_student
from tests.engine.loopback_hub import TOKEN, running_hub
from tests.worker.runs import OWNER, queue_runs
from worker.analysis import work_on_analysis
from worker.engine_server import EngineServer
from worker.export_garbage import ExportGarbage
from worker.settings import WorkerSettings
from worker.slots import Slot
from worker.supervisor import Workplace

_SLOT = Slot(0, None)
_PATH = "/api/v1/exports"


@pytest.fixture
def database_url(home: Path) -> str:
    """SQLite alone: the queries behind it are tested on both."""
    return databases.sqlite_copy(home)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return written_student(tmp_path_factory.mktemp("base"))


@pytest.fixture
def checkpoint_id(database: Database, settings: Settings, student: Student, tmp_path: Path) -> str:
    folder = saved_checkpoint(student, tmp_path)
    (run_id,) = queue_runs(database, student.spec)
    return commit_checkpoint(database, settings.run_dir, run_id, contents=contents_of(folder))


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), base_url="http://127.0.0.1:8000", headers=SIGNED_IN) as opened:
        yield opened


@pytest.fixture
def place(home: Path, database: Database, engines: EngineServer | None) -> Workplace:
    return Workplace(database, home, home / "runs", WorkerSettings(), lambda: False, engine_server=engines)


def claim_of(database: Database, client: TestClient, checkpoint_id: str, **choice: Any) -> queries.AnalysisClaim:
    response = client.post(_PATH, json={"checkpoint_id": checkpoint_id, "export": choice})
    assert response.status_code == 201, response.json()
    with database.write() as session:
        claim = queries.claim_analysis(session, OWNER)
    assert claim is not None
    return claim


@pytest.mark.parametrize("engines", ["forked"], indirect=True)
def test_a_merged_folder_comes_out_of_the_archive_and_answers_as_the_student(
    place: Workplace, client: TestClient, database: Database, checkpoint_id: str, student: Student, tmp_path: Path
) -> None:
    claim = claim_of(database, client, checkpoint_id, kind="merged")
    work_on_analysis(claim, _SLOT, place)
    made = client.get(f"{_PATH}/{claim.analysis_id}").json()
    assert made["state"] == "succeeded", made["findings"]
    with tarfile.open(fileobj=io.BytesIO(client.get(f"{_PATH}/{claim.analysis_id}/archive").content)) as tar:
        tar.extractall(tmp_path / "fetched", filter="data")
    (folder,) = (tmp_path / "fetched").iterdir()
    assert {path.name for path in folder.iterdir()} == {file["name"] for file in made["result"]["files"]}
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(input_ids=TOKENS).logits
        expected = student.model.module(input_ids=TOKENS).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


@pytest.mark.full
def test_a_push_leaves_no_file_on_this_installation_and_no_token_in_its_database(
    place: Workplace, client: TestClient, database: Database, checkpoint_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        claim = claim_of(database, client, checkpoint_id, kind="hub", repository="lab/prefix-8")
        work_on_analysis(claim, _SLOT, place)
        wrong = claim_of(database, client, checkpoint_id, kind="hub", repository="stranger/prefix-8")
        work_on_analysis(wrong, _SLOT, place)
    made = client.get(f"{_PATH}/{claim.analysis_id}").json()
    assert (made["state"], made["result"]["commit"]) == ("succeeded", hub.repositories["lab/prefix-8"].commits[0][0])
    assert "(403)" in client.get(f"{_PATH}/{wrong.analysis_id}").json()["findings"][0]["message"]
    assert list((place.home / "exports").glob("*")) == []
    assert not [path for path in place.home.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_a_failure_is_told_at_its_field_and_leaves_no_file(
    place: Workplace, client: TestClient, database: Database, checkpoint_id: str
) -> None:
    claim = claim_of(database, client, checkpoint_id, kind="merged")
    (weights,) = place.home.glob("runs/*/attempts/*/checkpoints/*/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    work_on_analysis(claim, _SLOT, place)
    failed = client.get(f"{_PATH}/{claim.analysis_id}").json()
    assert failed["state"] == "failed"
    (finding,) = failed["findings"]
    assert finding["field"] == "checkpoint_id"
    assert "model.safetensors has another content; export another one" in finding["message"]
    assert list((place.home / "exports").glob("*")) == []


def test_a_cancel_ends_the_converter_and_removes_what_it_wrote(
    place: Workplace,
    client: TestClient,
    database: Database,
    checkpoint_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = tmp_path / "convert_hf_to_gguf.py"
    slow.write_text("import pathlib, sys, time\npathlib.Path(sys.argv[3]).write_bytes(b'half')\ntime.sleep(600)\n")
    monkeypatch.setenv("INCIPIT_GGUF_CONVERTER", str(slow))
    claim = claim_of(database, client, checkpoint_id, kind="gguf")
    work = threading.Thread(target=work_on_analysis, args=(claim, _SLOT, place))
    work.start()
    exports = place.home / "exports"
    deadline = time.monotonic() + 60
    while not list(exports.rglob("*.gguf")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(exports.rglob("*.gguf"))
    client.post(f"{_PATH}/{claim.analysis_id}/cancel")
    work.join(30)
    assert not work.is_alive()
    assert list(exports.glob("*")) == []
    assert not [one for one in psutil.process_iter(["cmdline"]) if str(slow) in (one.info["cmdline"] or [])]


def test_garbage_is_what_no_row_needs(
    place: Workplace, client: TestClient, database: Database, checkpoint_id: str
) -> None:
    claim = claim_of(database, client, checkpoint_id, kind="merged")
    exports = place.home / "exports"
    at_work = exports / claim.analysis_id / f"{claim.fence}.tmp-abc"
    lost = exports / claim.analysis_id / "0.tmp-abc"
    strangers = exports / "another-installations" / "1"
    for folder in (at_work, lost, strangers):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"12345")
    assert ExportGarbage(database, exports).turn() == 0, "a process that was declared dead may still write"
    assert ExportGarbage(database, exports, min_age_seconds=0).turn() == 5
    assert not lost.exists()
    assert at_work.exists()
    assert strangers.exists()
    client.post(f"{_PATH}/{claim.analysis_id}/cancel")
    ExportGarbage(database, exports, min_age_seconds=0).turn()
    assert [path.name for path in exports.iterdir()] == ["another-installations"]
