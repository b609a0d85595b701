"""What is wrong with a question is said before anything is queued, by the check and by the asking alike."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.app import create_app
from backend.database import Database
from backend.limits import Limits
from backend.settings import Settings
from tests import databases
from tests.access import SIGNED_IN
from tests.backend.checkpoints import attempt_folder, commit_checkpoint
from tests.backend.conftest import ADDRESS

Document = dict[str, Any]
_PATH = "/api/v1/playground/questions"


@pytest.fixture
def database_url(home: Path) -> str:
    """SQLite alone: tests/backend/test_playground.py asks both."""
    return databases.sqlite_copy(home)


@pytest.fixture
def checkpoint_id(database: Database, settings: Settings, run_id: str) -> str:
    return commit_checkpoint(database, settings.run_dir, run_id)


@pytest.fixture
def question(run_id: str, checkpoint_id: str) -> Document:
    speakers = [{"kind": "checkpoint", "checkpoint_id": checkpoint_id}, {"kind": "base"}, {"kind": "teacher"}]
    return {"run_id": run_id, "prompt": "k3", "speakers": speakers, "max_completion_tokens": 16}


def refused(client: TestClient, question: Document, field: str) -> str:
    """The one finding of a question, which the check before it says as well; nothing is queued."""
    response = client.post(_PATH, json=question)
    assert response.status_code == 422
    (finding,) = response.json()["errors"]
    assert finding["field"] == field
    assert client.post("/api/v1/playground/validate", json=question).json() == [finding]
    assert client.get(_PATH).json() == []
    sentence: str = finding["message"]
    assert sentence.endswith(".")
    return sentence


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"run_id": "nothing"}, "run_id", "there is no such run"),
        ({"speakers": [{"kind": "checkpoint", "checkpoint_id": "no"}]}, "speakers.0", "does not exist or was removed"),
        ({"speakers": [{"kind": "base"}] * 2}, "speakers.1", "speakers.1 is the same as speakers.0 (base student)"),
        ({"speakers": []}, "speakers", "has 0 entries but needs 1"),
        ({"speakers": [{"kind": "base"}] * 5}, "speakers", "has more than 4 entries"),
        ({"num_samples": 5}, "num_samples", "must be at most 4"),
        ({"num_samples": 2, "temperature": 0}, "num_samples", "temperature 0 gives the same answer each time"),
        ({"max_completion_tokens": 256}, "max_completion_tokens", "has a context of 256 tokens, the prompt included"),
        ({"prompt": ""}, "prompt", "is empty"),
    ],
)
def test_what_can_be_known_is_said_before_anything_is_queued(
    client: TestClient, question: Document, changes: Document, field: str, says: str
) -> None:
    assert says in refused(client, question | changes, field)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("gone", "config.json of checkpoint ID is not on this machine's disk; take another checkpoint of this run."),
        ("cut", "model.safetensors of checkpoint ID has 5 bytes instead of 300001;"),
        ("replaced", "manifest.json of checkpoint ID is not the one that was committed;"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name(
    client: TestClient, settings: Settings, run_id: str, checkpoint_id: str, question: Document, damage: str, says: str
) -> None:
    folder = attempt_folder(settings.run_dir, run_id) / "checkpoints" / "step-20"
    if damage == "gone":
        (folder / "config.json").unlink()
    elif damage == "cut":
        (folder / "model.safetensors").write_bytes(b"short")
    else:
        (folder / "manifest.json").write_text("{}")
    assert says.replace("ID", checkpoint_id) in refused(client, question, "speakers.0")


def test_another_tokenizer_is_a_warning_and_no_refusal(
    client: TestClient, database: Database, settings: Settings, run_ids: list[str], question: Document
) -> None:
    other = commit_checkpoint(database, settings.run_dir, run_ids[1], step=30)
    asked = question | {"speakers": [{"kind": "checkpoint", "checkpoint_id": other}]}
    folder = attempt_folder(settings.run_dir, run_ids[1]) / "checkpoints" / "step-30"
    assert client.post("/api/v1/playground/validate", json=asked).json() == [], (
        "without a tokenizer.json nobody can say"
    )
    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "x": 3}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": words}}))
    (finding,) = client.post("/api/v1/playground/validate", json=asked).json()
    assert (finding["field"], finding["severity"]) == ("speakers.0", "warning")
    assert (
        "whose tokenizer is not the teacher's (1 of 4 ids differ): its answers are shown as text" in finding["message"]
    )
    assert client.post(_PATH, json=asked).status_code == 201
    for broken in ("[", "[1]", '{"model": {"vocab": [[]]}}'):
        (folder / "tokenizer.json").write_text(broken)
        assert client.post("/api/v1/playground/validate", json=asked).json() == []


@pytest.fixture
def opened(settings: Settings) -> Iterator[Callable[..., TestClient]]:
    """Opens an API with other limits than the usual ones."""
    with ExitStack() as stack:

        def with_limits(**limits: float) -> TestClient:
            app = create_app(settings.model_copy(update={"limits": Limits.model_validate(limits)}))
            return stack.enter_context(TestClient(app, base_url=ADDRESS, headers=SIGNED_IN))

        yield with_limits


def test_prompt_and_tokens_are_limited(opened: Callable[..., TestClient], question: Document) -> None:
    client = opened(playground_prompt_bytes=1024, playground_tokens=3 * 2 * 16)
    most = question | {"prompt": "ä" * 512, "num_samples": 2}
    assert client.post("/api/v1/playground/validate", json=most).json() == []
    says = refused(client, most | {"prompt": "ä" * 512 + "x"}, "prompt")
    assert says == "prompt has 1025 bytes but may have 1024; shorten it."
    says = refused(client, most | {"max_completion_tokens": 17}, "max_completion_tokens")
    assert "makes 102 tokens, but a question may have 96; lower one of the three." in says
