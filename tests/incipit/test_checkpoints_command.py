"""`incipit checkpoints` against a real API process: listed, downloaded, killed in the middle, resumed, and never wrong."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from backend import schemas
from backend.database import Database
from backend.ids import new_id
from backend.records import Checkpoint
from dashboard.api_client import ApiClient
from incipit.cli import app
from incipit.download import DownloadFailed, checkpoint_download, folder_name
from tests import api_process, databases
from tests.access import TOKEN
from tests.backend.checkpoints import FILES, attempt_folder, commit_checkpoint
from tests.worker.runs import queue_runs, short_spec

LARGE = "model.safetensors"
_LARGE_BYTES = 400 * 1024**2


@dataclass
class Served:
    """An API process with a checkpoint."""

    url: str
    database: Database
    checkpoint_id: str
    run_id: str
    folder: Path
    """Where the checkpoint lies on the server."""


@pytest.fixture
def served(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    address = databases.sqlite_copy(home)
    database = Database(address)
    (run_id,) = queue_runs(database, short_spec())
    checkpoint_id = commit_checkpoint(database, home / "runs", run_id)
    monkeypatch.setenv("INCIPIT_API_KEY", TOKEN)
    with api_process.served(address) as api:
        monkeypatch.setenv("INCIPIT_API_URL", api.url)
        folder = attempt_folder(home / "runs", run_id) / "checkpoints" / "step-20"
        yield Served(api.url, database, checkpoint_id, run_id, folder)
    database.close()


def make_large(served: Served) -> None:
    """Let the checkpoint's weights be a large file, its row and manifest agreeing: random at its ends, empty between."""
    path = served.folder / LARGE
    with path.open("r+b") as file:
        file.truncate(_LARGE_BYTES)
        file.seek(_LARGE_BYTES - 1000)
        file.write(os.urandom(1000))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    manifest = json.loads((served.folder / "manifest.json").read_text())
    for one in manifest["files"]:
        if one["name"] == LARGE:
            one |= {"num_bytes": _LARGE_BYTES, "sha256": digest}
    content = json.dumps(manifest).encode()
    (served.folder / "manifest.json").write_bytes(content)
    values = {
        "files": manifest["files"],
        "manifest_sha256": hashlib.sha256(content).hexdigest(),
        "num_bytes": sum(one["num_bytes"] for one in manifest["files"]),
    }
    with served.database.write() as session:
        session.execute(update(Checkpoint).values(**values))


def invoke(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["checkpoints", *arguments])
    return done.exit_code, done.stdout, done.stderr


def download(served: Served, out: Path) -> tuple[int, dict[str, object], str]:
    code, text, error = invoke("download", served.checkpoint_id, "--out", str(out), "--json")
    return code, json.loads(text) if code == 0 else {}, error


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def start_and_kill(served: Served, out: Path) -> int:
    """The command in a process of its own, killed when part of the large file is there; how much of it there is."""
    code = "from incipit.cli import app; app()"
    command = [sys.executable, "-c", code, "checkpoints", "download", served.checkpoint_id, "--out", str(out), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    part = out / f"{LARGE}.part"
    while not part.exists() or part.stat().st_size < 5_000_000:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    have = part.stat().st_size
    assert 5_000_000 <= have < _LARGE_BYTES
    return have


def test_checkpoints_are_listed_and_one_is_fetched_whole(served: Served, tmp_path: Path) -> None:
    code, text, _ = invoke("list")
    assert code == 0
    assert all(words in text for words in ("short", "20", "0.500", "best", "kB", served.checkpoint_id)), text
    (listed,) = json.loads(invoke("list", served.run_id[-12:], "--json")[1])
    assert (listed["id"], len(listed["manifest_sha256"]), listed["pinned"]) == (served.checkpoint_id, 64, False)
    assert json.loads(invoke("list", "another run", "--json")[1]) == []
    out = tmp_path / "out"
    code, text, _ = invoke("download", served.checkpoint_id[-10:], "--out", str(out))
    assert (code, text.strip()) == (0, f"5 files in {out}, every sha256 verified.")
    assert contents(out) == contents(served.folder)
    code, result, _ = download(served, out)
    assert (code, result["fetched_bytes"]) == (0, 0), "what is there and right is not fetched again"


def test_a_run_behind_many_newer_ones_still_lists_its_checkpoints(served: Served) -> None:
    newer = queue_runs(served.database, *[short_spec(name="newer") for _ in range(201)])
    with served.database.write() as session:
        session.add_all(
            Checkpoint(
                id=new_id(), run_id=newer[0], fence=1, step=step, path=f"checkpoints/step-{step}", manifest_sha256="0" * 64,
                num_bytes=1, accuracy=None, is_best=False, files=[], created_at=datetime.now(UTC),
            )
            for step in range(1, 1002)
        )  # fmt: skip
    for given in ("short", served.run_id, served.run_id[-12:]):
        (listed,) = json.loads(invoke("list", given, "--json")[1])
        assert listed["id"] == served.checkpoint_id, given
    assert {one["run_id"] for one in json.loads(invoke("list", "newer", "--json")[1])} == {newer[0]}


def test_a_download_that_was_killed_goes_on_and_ends_with_equal_bytes(served: Served, tmp_path: Path) -> None:
    make_large(served)
    out = tmp_path / "out"
    have = start_and_kill(served, out)
    code, result, error = download(served, out)
    assert code == 0, error
    rest = sum(path.stat().st_size for path in served.folder.rglob("*") if path.is_file()) - have
    fetched = result["fetched_bytes"]
    assert isinstance(fetched, int)
    assert rest - len(FILES["config.json"]) <= fetched <= rest
    assert {path.name for path in out.rglob("*.part")} == set()
    for path in served.folder.rglob("*"):
        if path.is_file():
            subprocess.run(["cmp", path, out / path.relative_to(served.folder)], check=True)


def test_a_download_that_was_killed_before_the_last_renaming_is_completed(served: Served, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert download(served, out)[0] == 0
    (out / "manifest.json").rename(out / "manifest.json.part")
    code, result, error = download(served, out)
    assert (code, error) == (0, "")
    assert result["fetched_bytes"] == 0
    assert contents(out) == contents(served.folder)


def test_a_file_that_changed_on_the_server_in_between_is_noticed(served: Served, tmp_path: Path) -> None:
    make_large(served)
    out = tmp_path / "out"
    start_and_kill(served, out)
    weights = served.folder / LARGE
    with weights.open("r+b") as file:
        file.seek(_LARGE_BYTES - 1)
        last = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([last[0] ^ 1]))
    code, _, error = download(served, out)
    assert code == 1
    assert "model.safetensors came with sha256" in error
    assert "was changed on the server, or between two parts of the download" in error
    assert not (out / LARGE).exists()
    assert not (out / "manifest.json").exists(), "an incomplete folder has no manifest"
    with weights.open("r+b") as file:
        file.seek(_LARGE_BYTES - 1)
        file.write(last)
    assert download(served, out)[0] == 0
    subprocess.run(["cmp", weights, out / LARGE], check=True)


def test_a_file_of_another_size_and_a_checkpoint_that_is_gone_are_told(served: Served, tmp_path: Path) -> None:
    (served.folder / LARGE).write_bytes(b"short")
    code, _, error = download(served, tmp_path / "out")
    assert code == 1
    assert f"has 5 bytes instead of {len(FILES[LARGE])}; take another checkpoint" in error
    with served.database.write() as session:
        session.execute(update(Checkpoint).values(removed_at=Checkpoint.created_at))
    code, _, error = download(served, tmp_path / "out")
    assert code == 1
    assert "No checkpoint has an id like" in error


def test_a_list_that_is_out_of_date_is_noticed_by_the_etag(served: Served, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with ApiClient(served.url, token=TOKEN) as client:
        stale = client.checkpoint(served.checkpoint_id)
        new = os.urandom(len(FILES[LARGE]))
        (served.folder / LARGE).write_bytes(new)
        files = [file.model_dump() for file in stale.files]
        for one in files:
            if one["name"] == LARGE:
                one["sha256"] = hashlib.sha256(new).hexdigest()
        with served.database.write() as session:
            session.execute(update(Checkpoint).values(files=files))
        out.mkdir()
        (out / f"{LARGE}.part").write_bytes(FILES[LARGE][:1000])
        with pytest.raises(DownloadFailed, match=r"is not the file any more that was listed \(ETag"):
            checkpoint_download(client, stale, out).run()
        assert (out / f"{LARGE}.part").read_bytes() == FILES[LARGE][:1000]


def test_a_folder_with_other_files_is_not_overwritten(served: Served, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    code, _, error = download(served, tmp_path)
    assert code == 1
    assert "is there already and is another file; choose another --out." in error
    assert (tmp_path / "config.json").read_text() == "mine"


def test_a_broken_connection_is_taken_up_again_and_a_dead_server_is_told(served: Served, tmp_path: Path) -> None:
    with ApiClient("http://127.0.0.1:9") as nowhere, ApiClient(served.url, token=TOKEN) as client:
        checkpoint = client.checkpoint(served.checkpoint_id)
        fetching = checkpoint_download(nowhere, checkpoint, tmp_path / "out")
        fetching.retry_seconds = 0.0
        with pytest.raises(DownloadFailed, match="Start the same command again: it goes on at byte 0"):
            fetching.run()
        fetching.opened = checkpoint_download(client, checkpoint, tmp_path / "out").opened
        fetching.run()
    assert contents(tmp_path / "out") == contents(served.folder)


def a_checkpoint(**changes: object) -> schemas.Checkpoint:
    values = {
        "id": "c", "run_id": "r", "run_name": "short", "experiment_name": "e", "step": 20, "num_bytes": 1, "accuracy": None,
        "manifest_sha256": "0" * 64, "is_best": False, "created_at": datetime.now(UTC), "files": [],
    }  # fmt: skip
    return schemas.Checkpoint.model_validate(values | changes)


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/../../b", "a\\b", "x.part", ""])
def test_a_server_cannot_make_it_write_elsewhere(tmp_path: Path, name: str) -> None:
    checkpoint = a_checkpoint(files=[{"name": name, "num_bytes": 1, "sha256": "0" * 64}])
    nowhere = ApiClient("http://127.0.0.1:9")
    with nowhere, pytest.raises(DownloadFailed, match="has no place in a folder; nothing was written"):
        checkpoint_download(nowhere, checkpoint, tmp_path / "out").run()
    assert not (tmp_path / "out").exists()


def test_a_folder_gets_a_harmless_name() -> None:
    assert folder_name(a_checkpoint(run_name="../a b; rm -rf ~ ·")) == "a-b-rm-rf-step-20"
    assert folder_name(a_checkpoint(run_name="…")) == "run-step-20"


def test_without_a_stack_it_says_how_to_start_one(home: Path) -> None:
    code, _, error = invoke("list")
    assert (code, error.strip()) == (1, f"Nothing runs in {home}; start it with `incipit up`, or set INCIPIT_API_URL.")
