"""The API on a real database, and runs that have recorded something."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.app import create_app
from backend.settings import Settings
from tests.access import SIGNED_IN

ADDRESS = "http://127.0.0.1:8000"
Document = dict[str, Any]

_BASE: Document = {
    "name": "base",
    "student": {"path": "builtin:tiny/models/student-plan"},
    "teacher": {"path": "builtin:tiny/models/teacher"},
    "prompts": {"path": "builtin:tiny/data/train.jsonl"},
    "prefix": {"kind": "constant", "tokens": 8},
    "max_completion_tokens": 224,
    "num_steps": 40,
    "evaluation": {"path": "builtin:tiny/data/dev.jsonl"},
}


@pytest.fixture
def base() -> Document:
    """A valid spec as JSON values, free to be changed."""
    return deepcopy(_BASE)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """The API, whose faults come as the responses that people would get."""
    app = create_app(settings)
    with TestClient(app, base_url=ADDRESS, headers=SIGNED_IN, raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture
def run_ids(client: TestClient, base: Document) -> list[str]:
    """Ids of five queued runs of one experiment, oldest first."""
    body = {"name": "How short?", "base": base, "variants": [{"name": "short"}], "seeds": [0, 1, 2, 3, 4]}
    experiment = client.post("/api/v1/experiments", json=body).json()
    return [run["id"] for run in client.get(f"/api/v1/experiments/{experiment['id']}/runs").json()]


@pytest.fixture
def run_id(run_ids: list[str]) -> str:
    """Id of a queued run."""
    return run_ids[0]
