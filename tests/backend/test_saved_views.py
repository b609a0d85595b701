"""Saved views: kept, changed and removed by operators of their project, within limits."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.app import create_app
from backend.database import Database
from backend.limits import Limits
from backend.settings import Settings
from tests.access import SIGNED_IN, key_of, with_key
from tests.backend.conftest import ADDRESS

VIEW: dict[str, Any] = {
    "name": "16 tokens",
    "note": "Enough? ‮ <b>",
    "query": "experiment=e&x=trained_tokens&target=0.9",
}


def test_a_view_is_kept_opened_changed_and_removed(client: TestClient) -> None:
    created = client.post("/api/v1/views", json=VIEW)
    assert created.status_code == 201
    address = created.headers["Location"]
    found = client.get(address).json()
    assert {name: found[name] for name in VIEW} == VIEW
    assert found["created_by"] == "local"
    changed = client.put(address, json=VIEW | {"note": "Yes."}, headers={"If-Match": "*"}).json()
    assert (changed["note"], changed["created_at"]) == ("Yes.", found["created_at"])
    assert client.post("/api/v1/views", json=VIEW | {"name": "newer"}).status_code == 201
    assert [one["name"] for one in client.get("/api/v1/views").json()] == ["newer", "16 tokens"]
    assert client.post(f"{address}/remove", json=None).json()["note"] == "Yes."
    for answer in (client.get(address), client.put(address, json=VIEW), client.post(f"{address}/remove", json=None)):
        assert answer.status_code == 404


def test_a_change_of_a_view_does_not_undo_another_unseen(client: TestClient) -> None:
    address = client.post("/api/v1/views", json=VIEW).headers["Location"]
    missing = client.put(address, json=VIEW)
    assert (missing.status_code, "needs the header If-Match" in missing.json()["detail"]) == (428, True)
    read = client.get(address).headers["ETag"]
    first = client.put(address, json=VIEW | {"name": "first"}, headers={"If-Match": read})
    assert (first.status_code, first.headers["ETag"] != read) == (200, True)
    second = client.put(address, json=VIEW | {"name": "second"}, headers={"If-Match": read})
    assert second.status_code == 412
    assert second.json()["detail"] == (
        f"The view was changed since: its ETag is {first.headers['ETag']}, not {read}; read it again."
    )
    assert client.get(address).json()["name"] == "first"
    again = client.put(address, json=VIEW | {"name": "second"}, headers={"If-Match": first.headers["ETag"]})
    assert again.json()["name"] == "second"


def test_a_viewer_opens_views_and_keeps_none(client: TestClient, database: Database) -> None:
    address = client.post("/api/v1/views", json=VIEW).headers["Location"]
    viewer = TestClient(client.app, base_url=ADDRESS, headers=with_key(key_of(database, "viewer", "default")))
    assert viewer.get(address).json()["name"] == VIEW["name"]
    for answer in (
        viewer.post("/api/v1/views", json=VIEW), viewer.put(address, json=VIEW), viewer.post(f"{address}/remove", json=None),
    ):  # fmt: skip
        assert answer.status_code == 403


@pytest.mark.parametrize(("field", "most", "sign"), [("name", 128, "n"), ("note", 10_000, "é"), ("query", 2000, "q")])
def test_a_view_is_as_long_as_its_limits_and_no_longer(client: TestClient, field: str, most: int, sign: str) -> None:
    assert client.post("/api/v1/views", json=VIEW | {field: sign * most}).status_code == 201
    answer = client.post("/api/v1/views", json=VIEW | {field: sign * (most + 1)})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field


def test_an_address_holds_no_blanks_and_nothing_outside_ascii(client: TestClient) -> None:
    for query in ("a b", "a\nb", "ä"):
        assert client.post("/api/v1/views", json=VIEW | {"query": query}).status_code == 422


def test_a_project_keeps_so_many_views_and_no_more(settings: Settings) -> None:
    few = settings.model_copy(update={"limits": Limits(saved_views=2)})
    with TestClient(create_app(few), base_url=ADDRESS, headers=SIGNED_IN) as client:
        answers = [client.post("/api/v1/views", json=VIEW) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [201, 201, 409]
        assert "has 2 saved views, at most 2 are kept; remove some first" in answers[2].json()["detail"]
