"""Alerts, rules and webhooks over the API, on both databases."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, update

from backend.alert_records import Alert
from backend.app import create_app
from backend.database import Database, now_of
from backend.limits import Limits
from backend.queries.raising import raise_ending
from backend.queries.webhooks import TEST_EVERY
from backend.settings import Settings
from tests.access import SIGNED_IN, key_of, with_key
from tests.backend.conftest import ADDRESS

HOOK = {"name": "mine", "url": "https://hooks.slack.com/services/T0/B0/secret"}


def refusal(response: Any, status: int) -> str:
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json"), (
        response.text
    )
    sentence: str = response.json()["detail"]
    return sentence


def fail(database: Database, *run_ids: str) -> None:
    for run_id in run_ids:
        with database.write() as session:
            raise_ending(session, run_id, "failed", "1", "It broke.")


def test_alerts_are_listed_paged_and_dismissed_for_everybody(
    client: TestClient, database: Database, run_ids: list[str]
) -> None:
    fail(database, *run_ids[:3])
    fail(database, run_ids[0])  # the same occurrence
    page = client.get("/api/v1/alerts", params={"limit": 2}).json()
    assert [(one["run_id"], one["rule"], one["severity"]) for one in page["items"]] == [
        (run_ids[2], "failed", "error"),
        (run_ids[1], "failed", "error"),
    ]
    assert page["num_open"] == 3
    (last,) = client.get("/api/v1/alerts", params={"limit": 2, "cursor": page["next_cursor"]}).json()["items"]
    gone = client.post(f"/api/v1/alerts/{last['id']}/dismiss").json()
    assert (gone["dismissed_by"], gone["dismissed_at"] is None) == ("local", False)
    assert client.post(f"/api/v1/alerts/{last['id']}/dismiss").json() == gone
    assert client.get("/api/v1/alerts").json()["num_open"] == 2
    assert len(client.get("/api/v1/alerts", params={"is_open": False}).json()["items"]) == 3
    assert client.post("/api/v1/alerts/nope/dismiss").status_code == 404


def test_rules_are_those_of_a_project(client: TestClient, database: Database) -> None:
    mine, theirs = (with_key(key_of(database, "operator", project)) for project in ("a", "b"))
    usual = client.get("/api/v1/alert-rules", headers=mine).json()
    assert (usual["accuracy_drop"], usual["no_progress_minutes"], usual["finished"]) == (0.1, 30, True)
    changed = usual | {"accuracy_drop": None}
    for _ in range(2):
        assert client.put("/api/v1/alert-rules", json=changed, headers=mine).json() == changed
    assert client.get("/api/v1/alert-rules", headers=mine).json() == changed
    assert client.get("/api/v1/alert-rules", headers=theirs).json() == usual
    refused = client.put("/api/v1/alert-rules", json=usual | {"divergence_factor": 1}, headers=mine)
    assert refusal(refused, 422) == "divergence_factor is 1 but must be more than 1.0; raise it."


def test_another_projects_alerts_and_webhooks_are_not_there(
    client: TestClient, database: Database, run_id: str
) -> None:
    made = client.post("/api/v1/webhooks", json=HOOK).json()
    fail(database, run_id)
    (alert,) = client.get("/api/v1/alerts").json()["items"]
    stranger = with_key(key_of(database, "admin", "b"))
    assert client.get("/api/v1/alerts", headers=stranger).json() == {"items": [], "num_open": 0, "next_cursor": None}
    assert client.get("/api/v1/webhooks", headers=stranger).json() == []
    for method, path in (
        ("POST", f"alerts/{alert['id']}/dismiss"),
        ("DELETE", f"webhooks/{made['id']}"),
        ("GET", f"webhooks/{made['id']}/deliveries"),
    ):
        assert client.request(method, f"/api/v1/{path}", headers=stranger).status_code == 404


def test_a_webhook_shows_its_secret_once_and_its_address_never(
    client: TestClient, database: Database, run_id: str
) -> None:
    made = client.post("/api/v1/webhooks", json=HOOK)
    assert made.status_code == 201
    assert made.json()["secret"].startswith("whsec_")
    fail(database, run_id)
    (listed,) = client.get("/api/v1/webhooks").json()
    assert (listed["host"], listed["num_pending"]) == ("hooks.slack.com", 1)
    assert "secret" not in str(listed)
    (waiting,) = client.get(made.headers["location"]).json()
    assert (waiting["state"], waiting["attempts"], waiting["rule"]) == ("pending", 0, "failed")
    assert client.delete(f"/api/v1/webhooks/{listed['id']}").status_code == 200
    assert client.get("/api/v1/webhooks").json() == []
    assert client.get("/api/v1/alerts").json()["num_open"] == 1


def test_a_test_alert_waits_for_its_webhook_and_is_in_no_list(client: TestClient, database: Database) -> None:
    (mine, other) = (client.post("/api/v1/webhooks", json=HOOK).json()["id"] for _ in range(2))
    asked = client.post(f"/api/v1/webhooks/{mine}/test")
    assert (asked.status_code, asked.json()["rule"], asked.json()["run_name"]) == (201, "test", None)
    assert client.get(asked.headers["location"]).json() == [asked.json()]
    assert client.get(f"/api/v1/webhooks/{other}/deliveries").json() == []
    everything = client.get("/api/v1/alerts", params={"is_open": False}).json()
    assert (everything["items"], everything["num_open"]) == ([], 0)
    refused = refusal(client.post(f"/api/v1/webhooks/{mine}/test"), 409)
    assert "at most one is sent every 5 s; try again then" in refused
    with database.write() as session:
        session.execute(update(Alert).values(time=now_of(session) - TEST_EVERY))
    again = client.post(f"/api/v1/webhooks/{mine}/test").json()
    assert [one["alert_id"] for one in client.get(f"/api/v1/webhooks/{mine}/deliveries").json()] == [again["alert_id"]]
    assert client.delete(f"/api/v1/webhooks/{mine}").status_code == 200
    with database.read() as session:
        assert session.scalars(select(Alert)).all() == []


def test_a_changed_secret_is_another_one_and_is_shown_once(client: TestClient) -> None:
    made = client.post("/api/v1/webhooks", json=HOOK).json()
    secrets = [client.post(f"/api/v1/webhooks/{made['id']}/rotate-secret").json()["secret"] for _ in range(2)]
    assert len({made["secret"], *secrets}) == 3
    assert all(secret.startswith("whsec_") for secret in secrets)
    assert "whsec_" not in client.get("/api/v1/webhooks").text


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_only_an_admin_of_the_project_tests_a_webhook_and_changes_its_secret(
    client: TestClient, database: Database
) -> None:
    made = client.post("/api/v1/webhooks", json=HOOK).json()
    low = with_key(key_of(database, "operator"))
    for action in ("test", "rotate-secret"):
        path = f"/api/v1/webhooks/{made['id']}/{action}"
        assert client.post(path, headers=low).status_code == 403
        assert client.post(path, headers=with_key(key_of(database, "admin", "b"))).status_code == 404


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_where_a_webhook_may_not_lead_is_refused_at_its_field(
    client: TestClient, settings: Settings, database: Database
) -> None:
    response = client.post("/api/v1/webhooks", json=HOOK | {"url": "http://example.org/x"})
    assert refusal(response, 422).startswith("url begins with 'http'; only https is taken")
    assert [one["field"] for one in response.json()["errors"]] == ["url"]
    own = {"name": "own", "url": "http://127.0.0.1:9/x"}
    assert client.post("/api/v1/webhooks", json=own).status_code == 201, "on a local stack"
    headers = with_key(key_of(database, "admin"))
    with TestClient(create_app(settings.model_copy(update={"local_token": None})), base_url=ADDRESS) as shared:
        assert shared.post("/api/v1/webhooks", json=own, headers=headers).status_code == 422


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_project_has_so_many_webhooks_and_no_more(settings: Settings) -> None:
    app = create_app(settings.model_copy(update={"limits": Limits(webhooks=1)}))
    with TestClient(app, base_url=ADDRESS, headers=SIGNED_IN) as client:
        assert client.post("/api/v1/webhooks", json=HOOK).status_code == 201
        assert refusal(client.post("/api/v1/webhooks", json=HOOK), 409) == (
            "The project has 1 webhooks, as many as it may; delete one first."
        )
    assert Limits().webhooks == 10
