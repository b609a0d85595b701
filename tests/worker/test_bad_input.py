"""Bad input is refused in the same sentence by the engine, by a preflight of the API and by `incipit check`."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr, ValidationError
from typer.testing import CliRunner

from backend.app import create_app
from backend.database import Database
from backend.queries.leases import claim_preflight
from backend.settings import Settings
from engine.check import check
from engine.exit_codes import OF_FAILURE
from engine.findings import findings_of
from engine.spec import RunSpec
from incipit.cli import app
from tests import databases
from tests.access import SIGNED_IN, TOKEN
from tests.engine.models import TINY, tiny_document
from tests.worker.runs import OWNER
from worker.preflight import answer
from worker.settings import WorkerSettings
from worker.slots import Slot
from worker.workplace import Workplace

Document = dict[str, Any]


def prompt_file(folder: Path, *lines: str) -> Document:
    path = folder / "prompts.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return {"prompts": {"path": str(path)}}


def another_vocabulary(folder: Path) -> Document:
    path = Path(shutil.copytree(TINY / "models" / "teacher", folder / "teacher"))
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["k0"], words["k1"] = words["k1"], words["k0"]
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return {"teacher": {"path": str(path)}}


def no_ending(folder: Path) -> Document:
    """A student whose config, generation config and tokenizer name no end-of-text token."""
    path = Path(shutil.copytree(TINY / "models" / "student-plan", folder / "student"))
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        values = json.loads((path / name).read_text())
        (path / name).write_text(
            json.dumps({k: v for k, v in values.items() if k not in ("eos_token_id", "eos_token")})
        )
    return {"student": {"path": str(path)}}


CASES: dict[str, tuple[Callable[[Path], Document], str, str]] = {
    "different vocabularies": (
        another_vocabulary,
        "teacher.path",
        "student and teacher have different vocabularies (2 of 81 ids differ: 17 is 'k0' and 'k1', 18 is 'k1' and 'k0'); "
        "choose a teacher with the student's tokenizer.",
    ),
    "student without EOS": (
        no_ending,
        "student.path",
        "student.path is '{folder}/student', which names no end-of-text token; set eos_token_id in its generation_config.json.",
    ),
    "empty prompt file": (
        prompt_file,
        "prompts.path",
        "prompts.path: '{folder}/prompts.jsonl' has no rows; give it at least one prompt.",
    ),
    "malformed prompt file": (
        lambda folder: prompt_file(folder, '{"prompt": "k0"}', '{"promt": "k0"}'),
        "prompts.path",
        "prompts.path: line 2 of '{folder}/prompts.jsonl' has no text under 'prompt'; fill it in or remove the line.",
    ),
    "completion beyond the context": (
        lambda folder: {"max_completion_tokens": 248},
        "max_completion_tokens",
        "max_completion_tokens is 248 but the student's context of 256 tokens leaves 247 after the longest prompt (9); "
        "lower max_completion_tokens or shorten the prompts.",
    ),
    "top-k over the vocabulary": (
        lambda folder: {"divergence": {"kind": "top_k_kl", "k": 82}},
        "divergence.k",
        "divergence.k is 82 but student and teacher share a vocabulary of 81 tokens; lower it to at most 81.",
    ),
}


def checked_by_command(folder: Path, document: Document) -> list[str]:
    """The errors that `incipit check` prints; it ends with the status of a bad spec."""
    path = folder / "spec.json"
    path.write_text(json.dumps(document))
    done = CliRunner().invoke(app, ["check", str(path)])
    assert done.exit_code == OF_FAILURE["bad_spec"]
    return [line.removeprefix("error: ") for line in done.stdout.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("case", CASES)
def test_what_only_an_opened_model_shows_is_one_sentence_in_engine_and_command(case: str, tmp_path: Path) -> None:
    make, field, sentence = CASES[case]
    document = tiny_document(**make(tmp_path))
    errors = [one for one in check(RunSpec.model_validate(document)).findings if one.severity == "error"]
    expected = sentence.format(folder=tmp_path)
    assert [(one.field, one.message) for one in errors] == [(field, expected)]
    assert checked_by_command(tmp_path, document) == [expected]


@pytest.mark.parametrize("case", ["different vocabularies", "malformed prompt file"])
def test_a_preflight_of_the_api_says_the_same_and_starts_nothing(case: str, tmp_path: Path, home: Path) -> None:
    """Slow: the worker starts the engine."""
    make, field, sentence = CASES[case]
    settings = Settings(
        home=home,
        database_url=databases.sqlite_copy(home),
        broker_url="redis://127.0.0.1:1/0",
        local_token=SecretStr(TOKEN),
    )
    database = Database(settings.database_url)
    place = Workplace(database, home, home / "runs", WorkerSettings(), threading.Event().is_set)
    with TestClient(create_app(settings), base_url="http://127.0.0.1", headers=SIGNED_IN) as client:
        asked = client.post("/api/v1/preflights", json=tiny_document(**make(tmp_path)))
        assert asked.status_code == 201
        with database.write() as session:
            claimed = claim_preflight(session, OWNER)
        assert claimed is not None
        answer(claimed, [Slot(0, None)], place)
        found = client.get(asked.headers["Location"]).json()
        assert client.get("/api/v1/runs").json()["items"] == []
    database.close()
    assert found["state"] == "done"
    errors = [(one["field"], one["message"]) for one in found["findings"] if one["severity"] == "error"]
    assert errors == [(field, sentence.format(folder=tmp_path))]
    assert found["facts"]["device_memory_bytes"] > 0
    assert not (home / "runs").exists()


def test_an_unknown_key_is_one_sentence_everywhere(tmp_path: Path, home: Path) -> None:
    document = tiny_document(speed=3)
    sentence = "speed is not a field of the spec; remove it or correct its name."
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(document)
    assert [(one.field, one.message) for one in findings_of(caught.value, document)] == [("speed", sentence)]
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(document))
    done = CliRunner().invoke(app, ["check", str(path)])
    assert (done.exit_code, done.output) == (OF_FAILURE["bad_spec"], sentence + "\n")
    settings = Settings(
        home=home,
        database_url=databases.sqlite_copy(home),
        broker_url="redis://127.0.0.1:1/0",
        local_token=SecretStr(TOKEN),
    )
    with TestClient(create_app(settings), base_url="http://127.0.0.1", headers=SIGNED_IN) as client:
        refused = client.post("/api/v1/preflights", json=document)
        assert refused.status_code == 422
        assert [(one["field"], one["message"]) for one in refused.json()["errors"]] == [("speed", sentence)]
        assert client.get("/api/v1/preflights").json() == []
