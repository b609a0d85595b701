"""`incipit export` against a real API process, with a thread in the worker's place: followed, fetched, refused, cancelled."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend.database import Database
from backend.queries import analyses as machinery
from backend.queries.exports import cancel_export
from engine.analysis_spec import AnalysisProgress
from engine.export_spec import ExportResult
from engine.findings import Finding
from engine.manifest import ManifestFile
from incipit.cli import app
from tests import api_process, databases
from tests.access import TOKEN
from tests.backend.checkpoints import commit_checkpoint
from tests.worker.runs import queue_runs, short_spec

_CONTENT = b"GGUF" * 50_000


@dataclass
class Served:
    database: Database
    home: Path
    checkpoint_id: str


@pytest.fixture
def served(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    address = databases.sqlite_copy(home)
    database = Database(address)
    (run_id,) = queue_runs(database, short_spec())
    checkpoint_id = commit_checkpoint(database, home / "runs", run_id)
    monkeypatch.setenv("INCIPIT_API_KEY", TOKEN)
    with api_process.served(address) as api:
        monkeypatch.setenv("INCIPIT_API_URL", api.url)
        yield Served(database, home, checkpoint_id)
    database.close()


@contextmanager
def worker(served: Served, work: Callable[[machinery.AnalysisClaim], None]) -> Iterator[None]:
    """Beside the block: claims the export that is about to be asked for and does `work` with it."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with served.database.write() as session:
                claim = machinery.claim_analysis(session, "a")
                if claim is not None:
                    machinery.report_progress(session, claim, AnalysisProgress(done=0.5, detail="converting"))
            if claim is not None:
                work(claim)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


def test_a_file_is_made_fetched_and_verified(served: Served, tmp_path: Path) -> None:
    def make(claim: machinery.AnalysisClaim) -> None:
        folder = served.home / "exports" / claim.analysis_id / str(claim.fence)
        folder.mkdir(parents=True)
        (folder / "model.gguf").write_bytes(_CONTENT)
        file = ManifestFile(name="model.gguf", num_bytes=len(_CONTENT), sha256=hashlib.sha256(_CONTENT).hexdigest())
        with served.database.write() as session:
            result = ExportResult(
                kind="gguf", files=[file], is_kept=True, notes=["All weights were trained."], seconds=1
            )
            machinery.end_analysis(session, claim, result)

    out = tmp_path / "out"
    arguments = ["export", served.checkpoint_id[-12:], "--kind", "gguf", "--type", "q8_0", "--out", str(out), "--json"]
    with worker(served, make):
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert (made["state"], made["export"]) == ("succeeded", {"kind": "gguf", "file_type": "q8_0"})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"model.gguf": _CONTENT}


def test_why_it_failed_or_was_cancelled_is_said(served: Served) -> None:
    def fail(claim: machinery.AnalysisClaim) -> None:
        with served.database.write() as session:
            machinery.end_analysis(session, claim, [Finding(field="", message="HF_HUB_OFFLINE is set on the worker.")])

    def cancel(claim: machinery.AnalysisClaim) -> None:
        with served.database.write() as session:
            cancel_export(session, claim.analysis_id)

    for work, words in (
        (fail, "HF_HUB_OFFLINE is set on the worker."),
        (cancel, "It was cancelled; nothing was kept."),
    ):
        with worker(served, work):
            result = CliRunner().invoke(app, ["export", served.checkpoint_id, "--kind", "hub", "--to", "lab/x"])
        assert result.exit_code == 1
        assert words in result.stderr


def test_bad_input_is_refused_in_the_api_s_words(served: Served) -> None:
    result = CliRunner().invoke(app, ["export", served.checkpoint_id, "--kind", "hub", "--to", "x", "--public"])
    assert result.exit_code == 1
    assert result.stderr.strip().endswith("each of letters, digits, dot, dash and underscore; write it like that.")
    mixed = CliRunner().invoke(app, ["export", served.checkpoint_id, "--kind", "gguf", "--dtype", "float16"])
    assert "export.dtype is not a field of the spec; remove it or correct its name." in mixed.stderr
