"""What the API says and does with workers and with what runs need of them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.database import Database
from backend.queries import drains
from backend.queries.leases import keep_worker, set_worker_run
from backend.queries.workers import CLOCK_SECONDS
from backend.resources import WorkerCapabilities
from tests.access import key_of, with_key


def announce(database: Database, id: str = "lab:0a:7:0", *, ahead: float = 0.0, **capabilities: Any) -> str:
    """A worker that is heard of now, with a clock that is so many seconds ahead; its id."""
    told = WorkerCapabilities.model_validate({"device": "cpu", **capabilities})
    with database.write() as session:
        keep_worker(
            session, id, host="lab", boot_id="0a", pid=7, pid_started=1.0, slot="cpu0", capabilities=told,
            clock=lambda: datetime.now(UTC) + timedelta(seconds=ahead),
        )  # fmt: skip
    return id


def test_a_drained_worker_says_when_it_has_nothing_left(client: TestClient, database: Database) -> None:
    id = announce(database)
    with database.write() as session:
        set_worker_run(session, id, "an analysis")
    assert client.post(f"/api/v1/workers/{id}/drain").json()["drain"] == "draining"
    answer = client.post(f"/api/v1/workers/{id}/drain", json={"requeue": True})
    assert (answer.status_code, answer.json()["drain_requeues"], answer.json()["run_id"]) == (200, True, None)
    with database.write() as session:
        assert drains.draining(session, [id, "other"]) == {id}
        assert drains.gives_back(session, id)
        set_worker_run(session, id, None)
    announce(database)  # a heartbeat changes nothing of it
    (told,) = client.get("/api/v1/workers").json()
    assert (told["drain"], told["drain_requeues"]) == ("drained", True)
    resumed = client.post(f"/api/v1/workers/{id}/resume").json()
    assert (resumed["drain"], resumed["drain_requeues"]) == ("no", False)


def test_only_admins_drain_and_unknown_workers_are_named(client: TestClient, database: Database) -> None:
    id = announce(database)
    for name in ("drain", "resume"):
        response = client.post(f"/api/v1/workers/nobody:1/{name}")
        assert (response.status_code, response.json()["detail"][:31]) == (404, "There is no worker 'nobody:1'; ")
        as_operator = with_key(key_of(database, "operator"))
        refused = client.post(f"/api/v1/workers/{id}/{name}", headers=as_operator)
        assert refused.status_code == 403


def test_an_admin_of_one_project_does_not_drain_what_works_for_all(client: TestClient, database: Database) -> None:
    id = announce(database)
    of_lab, of_all = (with_key(key_of(database, "admin", project)) for project in ("lab", "*"))
    for name in ("drain", "resume"):
        refused = client.post(f"/api/v1/workers/{id}/{name}", headers=of_lab)
        assert (refused.status_code, refused.json()["detail"]) == (
            403,
            "You are an admin of 'lab' but this changes what serves all projects; use an admin's key of project '*'.",
        )
        (told,) = client.get("/api/v1/workers").json()
        assert told["drain"] == "no"
    assert client.post(f"/api/v1/workers/{id}/drain", headers=of_all).json()["drain"] == "drained"
    resumed = client.post(f"/api/v1/workers/{id}/resume")  # with the token of a local stack
    assert (resumed.status_code, resumed.json()["drain"]) == (200, "no")


def test_what_a_run_needs_comes_from_its_spec_and_from_the_request(
    client: TestClient, database: Database, base: dict[str, Any]
) -> None:
    body = {"name": "q", "base": base, "needs": {"labels": ["lab-2", "a100"]}}
    experiment = client.post("/api/v1/experiments", json=body)
    assert experiment.status_code == 201, experiment.text
    (line,) = client.get(f"/api/v1/experiments/{experiment.json()['id']}/runs").json()
    run = client.get(f"/api/v1/runs/{line['id']}").json()
    assert run["needs"]["labels"] == ["a100", "lab-2"]
    assert run["needs"]["cpu_memory_bytes"] > 10**8
    assert line["waits_because"].startswith("No worker is connected; start one: ")
    announce(database, labels=["eu"], memory_total_bytes=10**12)
    (listed,) = client.get("/api/v1/runs").json()["items"]
    assert (
        "with a100 and lab-2, but no connected worker that could take it has them all (their labels are eu); start one with "
        in (listed["waits_because"])
    )
    copy = client.post(f"/api/v1/runs/{line['id']}/clone").json()
    assert copy["needs"]["labels"] == ["a100", "lab-2"]
    free = client.post(f"/api/v1/runs/{line['id']}/clone", json={"needs": {"labels": [], "memory_bytes": 2 * 10**12}})
    assert free.json()["needs"]["labels"] == []
    assert "needs at least 2000.00 GB of memory, but the roomiest" in free.json()["waits_because"]
    announce(database, labels=["a100", "lab-2"])
    assert client.get(f"/api/v1/runs/{line['id']}").json()["waits_because"] is None


@pytest.mark.parametrize(
    ("needs", "field", "says"),
    [
        ({"labels": ["A B"]}, "needs.labels.0", "'A B'"),
        ({"labels": ["a", "a"]}, "needs.labels", "labels has 'a' 2 times"),
        ({"labels": [f"l{i}" for i in range(17)]}, "needs.labels", "16"),
        ({"memory_bytes": -1}, "needs.memory_bytes", "at least 0"),
        ({"memory_bytes": False}, "needs.memory_bytes", "whole number"),
        ({"gpus": 2}, "needs.gpus", "gpus"),
    ],
)  # fmt: skip
def test_needs_that_cannot_be_are_refused_by_their_field(
    client: TestClient, base: dict[str, Any], needs: dict[str, Any], field: str, says: str
) -> None:
    response = client.post("/api/v1/experiments", json={"name": "q", "base": base, "needs": needs})
    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert error["field"] == field
    assert says in error["message"]


def test_a_clock_that_is_off_is_a_warning_with_its_bound(client: TestClient, database: Database) -> None:
    announce(database, ahead=CLOCK_SECONDS - 1)
    assert not [one for one in client.get("/readyz").json()["warnings"] if "clock" in one]
    announce(database, ahead=-3600.0)
    (said,) = [one for one in client.get("/readyz").json()["warnings"] if "clock" in one]
    assert said.startswith("The clock of lab is 3600 s behind the database's (limit 5 s): ")
    (worker,) = client.get("/api/v1/workers").json()
    assert worker["clock_offset_seconds"] == pytest.approx(-3600, abs=2)
    assert worker["is_connected"], "when it was heard of is told by the database's clock"
