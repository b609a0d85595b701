"""Exports to a real HTTP server that speaks the hub's protocol, by huggingface_hub itself: sent whole, or one clear sentence."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import RunError
from engine.export import export
from engine.export_spec import ExportResult
from engine.student import Student
from tests.engine.exporting import asked, saved_checkpoint, written_student
from tests.engine.loopback_hub import TOKEN, LoopbackHub, Repository, running_hub

# huggingface_hub 2.4 sends files in a way that httpx2 has deprecated: lfs.py, `data=` of http_backoff.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return written_student(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def saved(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_checkpoint(student, tmp_path_factory.mktemp("run"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with running_hub() as opened:
        monkeypatch.setenv("HF_ENDPOINT", opened.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield opened


def pushed(student: Student, saved: Path, out: Path, words: list[str] | None = None, **choice: Any) -> ExportResult:
    spec = asked(student, saved, {"kind": "hub", "repository": "lab/prefix-8", **choice})
    told: list[str] = [] if words is None else words
    result = export(spec, lambda share, detail: told.append(detail), out / "1")
    assert list(out.iterdir()) == [], "nothing stays on this machine"
    return result


def refusal(student: Student, saved: Path, out: Path, **choice: Any) -> RunError:
    with pytest.raises(RunError) as error:
        pushed(student, saved, out, **choice)
    assert TOKEN not in str(error.value)
    assert not [path for path in out.rglob("*") if path.is_file()]
    return error.value


def test_a_private_repository_gets_folder_and_card_in_one_commit(
    hub: LoopbackHub, student: Student, saved: Path, tmp_path: Path
) -> None:
    words: list[str] = []
    result = pushed(student, saved, tmp_path, words)
    repository = hub.repositories["lab/prefix-8"]
    assert repository.private
    assert len(repository.commits) == 2
    assert (result.commit, result.url) == (repository.commits[0][0], f"{hub.url}/lab/prefix-8")
    assert not result.is_kept
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert repository.files[name] == (saved / name).read_bytes()
    assert b"No licence is stated" in repository.files["README.md"]
    assert repository.files.keys() == {file.name for file in result.files} | {".gitattributes"}
    assert any(one.startswith("sending to lab/prefix-8") for one in words)


def test_an_export_that_is_tried_again_commits_once(
    hub: LoopbackHub, student: Student, saved: Path, tmp_path: Path
) -> None:
    first = pushed(student, saved, tmp_path)
    again = pushed(student, saved, tmp_path)
    assert again.commit == first.commit
    assert len(hub.repositories["lab/prefix-8"].commits) == 2
    assert "earlier try" in again.notes[-1]


def test_a_name_that_is_taken_is_refused_unless_a_commit_more_is_wanted(
    hub: LoopbackHub, student: Student, saved: Path, tmp_path: Path
) -> None:
    hub.repositories["lab/prefix-8"] = Repository(private=False, files={"README.md": b"", "weights.bin": b""})
    taken = refusal(student, saved, tmp_path)
    assert taken.message == (
        "export.repository is 'lab/prefix-8', which is taken: it holds 2 files; choose another name, or set export.into_existing "
        "to add a commit to it."
    )
    assert taken.findings[0].field == "export.repository"
    result = pushed(student, saved, tmp_path, into_existing=True, dtype="bfloat16")
    assert "weights.bin" in hub.repositories["lab/prefix-8"].files
    assert "stays as private as it was" in result.notes[-1]
    assert any("cast to bfloat16" in note for note in result.notes)


def test_a_repository_that_nobody_has_written_to_is_taken(
    hub: LoopbackHub, student: Student, saved: Path, tmp_path: Path
) -> None:
    hub.repositories["lab/prefix-8"] = Repository(private=True)
    assert pushed(student, saved, tmp_path).commit is not None


def test_a_wrong_token_another_s_name_and_a_full_account_are_told_apart(
    hub: LoopbackHub, student: Student, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = refusal(student, saved, tmp_path, repository="stranger/prefix-8")
    assert "the worker's token may not write for 'stranger' (403)" in other.message
    hub.refuses_uploads = True
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between huggingface_hub's own tries
    full = refusal(student, saved, tmp_path)
    assert "(507: Private storage limit reached, please upgrade)" in full.message
    assert hub.repositories == {}, "what was made for nothing is removed"
    monkeypatch.setenv("HF_TOKEN", "hf_another0123456789")
    wrong = refusal(student, saved, tmp_path)
    assert f"{hub.url} does not know the worker's token (401); set HF_TOKEN" in wrong.message


@pytest.mark.usefixtures("hub")
def test_no_token_offline_and_no_hub_are_told_apart(
    student: Student, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    gone = refusal(student, saved, tmp_path)
    assert gone.failure == "server_unreachable"
    assert f"could not be sent to http://127.0.0.1:{port} (" in gone.message
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set on the worker" in refusal(student, saved, tmp_path).message
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "The worker has no token for the hub; set HF_TOKEN" in refusal(student, saved, tmp_path).message
