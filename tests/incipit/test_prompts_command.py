"""`incipit prompts` against a real API: upload with a guess or a map, list, delete."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from incipit.cli import app
from tests import databases
from tests.access import TOKEN
from tests.api_process import served

RUN = CliRunner().invoke


@pytest.fixture
def database_url(home: Path) -> str:
    return databases.sqlite_copy(home)


@pytest.fixture(autouse=True)
def _api(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with served(database_url) as process:
        monkeypatch.setenv("INCIPIT_API_URL", process.url)
        monkeypatch.setenv("INCIPIT_API_KEY", TOKEN)
        yield


def test_a_file_is_uploaded_listed_and_deleted(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("question,wert\n2+3=,5\n")
    guessed = RUN(app, ["prompts", "upload", str(path)])
    assert guessed.exit_code == 0, guessed.output
    assert guessed.stderr.strip() == "Taken: prompt=question"
    mapped = RUN(app, ["prompts", "upload", str(path), "--map", "prompt=question", "--map", "answer=wert"])
    reference = mapped.stdout.split()[-1]
    assert mapped.stdout == f"1 prompts of mine.csv: {reference}\n"
    assert reference in RUN(app, ["prompts", "list"]).output
    assert "2 files of prompts are called 'mine.csv'" in RUN(app, ["prompts", "delete", "mine.csv"]).output.lower()
    assert RUN(app, ["prompts", "delete", reference]).output == "mine.csv is deleted.\n"
    assert reference not in RUN(app, ["prompts", "list"]).output


def test_what_is_wrong_is_a_sentence_and_exit_code_1_or_2(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"q": "x"}\n{"p": "y"}\n')
    refused = RUN(app, ["prompts", "upload", str(path), "--map", "prompt=q"])
    assert (refused.exit_code, refused.stderr) == (
        1, 'Line 2: column "q" is missing; found "p"; choose the prompt column among them.\n',
    )  # fmt: skip
    assert RUN(app, ["prompts", "upload", str(tmp_path / "absent.csv")]).exit_code == 1
    assert RUN(app, ["prompts", "upload", str(path), "--map", "question"]).exit_code == 2
