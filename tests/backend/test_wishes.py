"""What people may ask of a run in which state, and what they are told when it cannot be."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.database import Database
from backend.records import Checkpoint
from backend.run_states import RunState
from backend.tables import Run
from tests.backend.recorded import change_run


def _ask(client: TestClient, run_id: str, wish: str, **body: Any) -> Any:
    return client.post(f"/api/v1/runs/{run_id}/{wish}", json=body or None)


def _history(client: TestClient, run_id: str) -> list[str]:
    events = client.get(f"/api/v1/runs/{run_id}/events", params={"kind": "state"}).json()["items"]
    return [event["payload"]["state"] for event in events]


def _add_checkpoint(database: Database, run_id: str, fence: int = 1) -> None:
    with database.write() as session:
        saved = Checkpoint(
            run_id=run_id, fence=fence, step=5, path="checkpoints/step-5", manifest_sha256="0" * 64, num_bytes=1,
            accuracy=None, is_best=False, files=[], created_at=session.get_one(Run, run_id).created_at,
        )  # fmt: skip
        session.add(saved)


def test_a_queued_run_is_paused_and_resumed_at_once(client: TestClient, run_id: str) -> None:
    paused = _ask(client, run_id, "pause").json()
    assert (paused["state"], paused["desired_state"]) == ("paused", "pause")
    assert _ask(client, run_id, "pause").status_code == 200, "asking twice changes nothing"
    resumed = _ask(client, run_id, "resume").json()
    assert (resumed["state"], resumed["desired_state"]) == ("queued", "run")
    assert _history(client, run_id) == ["queued", "paused", "queued"]


def test_a_paused_run_is_cancelled_and_retried_from_scratch(client: TestClient, run_id: str) -> None:
    _ask(client, run_id, "pause")
    assert _ask(client, run_id, "cancel").json()["state"] == "cancelled"
    refused = _ask(client, run_id, "retry")
    assert refused.status_code == 409
    assert refused.json()["detail"] == (
        "The run has no checkpoint that it could go on from; retry it with from_scratch set to true."
    )
    again = _ask(client, run_id, "retry", from_scratch=True).json()
    assert (again["state"], again["desired_state"], again["finished_at"]) == ("queued", "run", None)


@pytest.mark.parametrize("state", ["starting", "running"])
def test_of_a_run_at_work_things_are_only_asked(
    client: TestClient, run_id: str, database: Database, state: RunState
) -> None:
    change_run(database, run_id, state=state)
    assert _ask(client, run_id, "pause").json()["desired_state"] == "pause"
    assert _ask(client, run_id, "resume").json()["desired_state"] == "run"
    cancelled = _ask(client, run_id, "cancel").json()
    assert (cancelled["state"], cancelled["desired_state"]) == (state, "cancel")
    for wish in ("pause", "resume"):
        refused = _ask(client, run_id, wish)
        assert refused.status_code == 409
        assert "being cancelled" in refused.json()["detail"]


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_an_ended_run_is_told_to_be_ended_and_what_can_be_done(
    client: TestClient, run_id: str, database: Database, state: RunState
) -> None:
    change_run(database, run_id, state=state, desired_state="cancel" if state == "cancelled" else "run")
    for wish in ("cancel", "pause", "resume"):
        refused = _ask(client, run_id, wish)
        assert refused.status_code == 409
        assert refused.json()["detail"].startswith("The run has already ")
    assert client.get(f"/api/v1/runs/{run_id}").json()["state"] == state
    _add_checkpoint(database, run_id)
    retried = _ask(client, run_id, "retry")
    if state == "succeeded":
        assert retried.status_code == 409
        assert "clone it" in retried.json()["detail"]
    else:
        assert (retried.json()["state"], retried.json()["attempt"]) == ("queued", 0)


def test_only_ended_runs_are_retried(client: TestClient, run_id: str, database: Database) -> None:
    for state in ("queued", "running", "pausing", "paused", "cancelling"):
        change_run(database, run_id, state=state)
        refused = _ask(client, run_id, "retry", from_scratch=True)
        assert refused.json()["detail"] == f"The run is {state}; only failed and cancelled runs can be retried."


def test_checkpoints_from_before_a_start_from_scratch_do_not_count(
    client: TestClient, run_id: str, database: Database
) -> None:
    change_run(database, run_id, state="failed", fence=1)
    _add_checkpoint(database, run_id, fence=1)
    _ask(client, run_id, "retry", from_scratch=True)
    _ask(client, run_id, "cancel")
    assert _ask(client, run_id, "retry").status_code == 409


def test_a_clone_is_a_new_run_of_the_experiment_with_its_changes(client: TestClient, run_id: str) -> None:
    response = _ask(client, run_id, "clone", changes={"num_steps": 7, "prefix": {"kind": "full"}}, seed=3)
    copy, origin = response.json(), client.get(f"/api/v1/runs/{run_id}").json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/api/v1/runs/{copy['id']}"
    assert copy["name"] == f"{origin['name']} copy"
    assert (copy["state"], copy["experiment_id"], copy["seed"]) == ("queued", origin["experiment_id"], 3)
    expected = origin["spec"] | {"name": copy["name"], "num_steps": 7, "seed": 3}
    assert copy["spec"] | {"prefix": None} == expected | {"prefix": None}
    assert copy["spec"]["prefix"] == {"kind": "full"}
    assert client.get(f"/api/v1/runs/{run_id}").json() == origin


def test_a_clone_that_would_not_be_valid_names_the_field(client: TestClient, run_id: str) -> None:
    refused = _ask(client, run_id, "clone", changes={"num_steps": 0})
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"].endswith("num_steps")
    assert len(client.get("/api/v1/runs").json()["items"]) == 5


def test_priority_is_changed_only_by_those_who_have_read_the_run_as_it_is(
    client: TestClient, run_ids: list[str]
) -> None:
    last = run_ids[-1]
    address = f"/api/v1/runs/{last}"
    assert client.patch(address, json={"priority": 5}).status_code == 428
    etag = client.get(address).headers["etag"]
    changed = client.patch(address, json={"priority": 5}, headers={"If-Match": etag})
    assert (changed.json()["priority"], changed.json()["queue_position"]) == (5, 1)
    stale = client.patch(address, json={"priority": -5}, headers={"If-Match": etag})
    assert stale.status_code == 412
    assert changed.headers["etag"] in stale.json()["detail"]
    assert client.patch(address, json={"priority": 101}, headers={"If-Match": "*"}).status_code == 422
    assert client.patch("/api/v1/runs/nothing", json={"priority": 1}, headers={"If-Match": "*"}).status_code == 404


@pytest.mark.parametrize("wish", ["cancel", "pause", "resume", "retry", "clone"])
def test_nothing_can_be_asked_of_a_run_that_is_not_there(client: TestClient, wish: str) -> None:
    assert _ask(client, "nothing", wish).status_code == 404
