"""What the API answers is what its OpenAPI document says, whatever is asked; and nothing makes it fail."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, assume, given
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from backend.database import Database
from backend.run_states import RunState
from backend.settings import Settings
from tests import databases
from tests.access import SIGNED_IN
from tests.backend.checkpoints import commit_checkpoint
from tests.backend.recorded import change_run

_CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
_HEADERS = {"Host": "127.0.0.1"} | SIGNED_IN
_EXAMPLES = 12  # per operation: a smoke test of every input; the other tests know what to look for


@pytest.fixture
def database_url(home: Path) -> str:
    """SQLite alone: the queries behind it are tested on both."""
    return databases.sqlite_copy(home)


def test_every_operation_keeps_its_contract(
    client: TestClient, settings: Settings, database: Database, run_id: str, base: dict[str, Any]
) -> None:
    # The client's lifespan has opened the database that the application works on.
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", client.app, headers=_HEADERS)
    real_ids = {
        "run_id": run_id,
        "experiment_id": client.get(f"/api/v1/runs/{run_id}").json()["experiment_id"],
        "checkpoint_id": commit_checkpoint(database, settings.run_dir, run_id),
        "preflight_id": client.post("/api/v1/preflights", json=base).json()["id"],
        "analysis_id": client.post("/api/v1/analyses", json={"run": base}).json()["id"],
        "key_id": client.post("/api/v1/keys", json={"name": "ci"}).json()["id"],
        "name": "model.safetensors",
    }

    def prepare(label: str) -> None:
        """What one operation did to the run must not stand in the way of the next."""
        states: dict[str, RunState] = {"retry": "failed", "stream": "succeeded"}  # the stream of an ended run ends
        state = states.get(label.rpartition("/")[2], "queued")
        change_run(database, run_id, state=state, desired_state="run")

    answered = {
        operation.label: _statuses(operation, real_ids, prepare)
        for operation in (result.ok() for result in schema.get_all_operations())
    }
    assert len(answered) >= 30
    never_right = {label for label, statuses in answered.items() if not any(status < 300 for status in statuses)}
    # An invented signature is never right, invented models have no config.json, and no rollout was recorded.
    assert {label.split()[1].split("/")[3] for label in never_right} == {"download", "estimate", "rollouts"}


def _statuses(operation: Any, real_ids: dict[str, str], prepare: Callable[[str], None]) -> set[int]:
    """Call an operation with generated input, with invented ids and with real ones; the statuses of its answers."""
    statuses = set()

    @given(case=operation.as_strategy())
    @hypothesis.settings(
        max_examples=_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def keeps_contract(case: Any) -> None:
        parameters = case.path_parameters or {}
        assume("schema" not in parameters.values())  # /analyses/schema is an operation of its own
        statuses.add(_answer(case))
        if parameters.keys() & real_ids.keys():
            case.path_parameters = {name: real_ids.get(name, value) for name, value in parameters.items()}
            prepare(operation.label)
            if "If-Match" in (case.headers or {}):
                case.headers["If-Match"] = "*"  # the ETag of every run
            statuses.add(_answer(case))

    keeps_contract()
    return statuses


def _answer(case: Any) -> int:
    response = case.call(headers=_HEADERS)
    case.validate_response(response, checks=_CHECKS)
    return int(response.status_code)
