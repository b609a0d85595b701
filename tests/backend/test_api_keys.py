"""API keys: made once, stored as a hash, refused when they are wrong, revoked or expired, and never told."""

import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, select, text, update

from backend.access_records import ApiKey
from backend.app import create_app
from backend.database import Database
from backend.key_format import new_key, parsed_key
from backend.settings import Settings
from tests.access import TOKEN, key_of, with_key
from tests.backend.conftest import ADDRESS


@pytest.fixture
def stranger(settings: Settings) -> Iterator[TestClient]:
    """The API, asked without any credential."""
    with TestClient(create_app(settings), base_url=ADDRESS, raise_server_exceptions=False) as opened:
        yield opened


@pytest.mark.attack(29)
def test_a_key_has_its_id_and_256_random_bits() -> None:
    key = new_key()
    assert re.fullmatch(r"incipit_[0-9a-f]{16}_[0-9a-f]{64}", key.text)
    assert parsed_key(key.text) == key
    assert key.is_of(key.secret_sha256)
    assert not new_key().is_of(key.secret_sha256)
    for wrong in ("", "incipit__", key.text[:-1], key.text + "0", key.text.upper(), " " + key.text, key.text + "\n"):
        assert parsed_key(wrong) is None, wrong


def test_admins_make_list_and_revoke_keys(client: TestClient, stranger: TestClient) -> None:
    made = client.post("/api/v1/keys", json={"name": "Ada's laptop", "role": "operator", "valid_days": 90})
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    key = made.json()
    lives = datetime.fromisoformat(key["expires_at"]) - datetime.fromisoformat(key["created_at"])
    assert (lives, key["role"], key["project_id"], key["created_by"]) == (timedelta(90), "operator", "default", "local")
    me = stranger.get("/api/v1/me", headers=with_key(key["key"])).json()
    assert me == {"id": f"key:{key['id']}", "role": "operator", "project_id": "default"}
    (listed,) = client.get("/api/v1/keys").json()
    assert listed["last_used_at"] is not None
    assert listed | {"last_used_at": None} == {name: value for name, value in key.items() if name != "key"}
    revoked = client.post(f"/api/v1/keys/{key['id']}/revoke").json()
    assert revoked["revoked_at"] is not None
    assert client.post(f"/api/v1/keys/{key['id']}/revoke").json() == revoked
    assert stranger.get("/api/v1/me", headers=with_key(key["key"])).status_code == 401
    assert client.post("/api/v1/keys/unknown/revoke").status_code == 404


@pytest.mark.attack(29)
def test_what_is_not_a_valid_key_is_refused_with_the_same_words(stranger: TestClient, database: Database) -> None:
    expired, revoked = key_of(database, "admin", valid_days=1), key_of(database, "admin")
    with database.write() as session:
        moment = datetime.now(UTC) - timedelta(seconds=1)
        session.execute(update(ApiKey).where(ApiKey.id == expired.split("_")[1]).values(expires_at=moment))
        session.execute(update(ApiKey).where(ApiKey.id == revoked.split("_")[1]).values(revoked_at=moment))
    valid = key_of(database, "admin")
    swapped = valid[:-1] + ("0" if valid[-1] != "0" else "1")
    headers = [with_key(key) for key in (expired, revoked, swapped, new_key().text, "", TOKEN[:-1], "é", "a.b.c")]
    headers += [{}, {"Authorization": f"Basic {valid}"}, {"Authorization": valid}]
    answers = [stranger.get("/api/v1/runs", headers={n: v.encode() for n, v in one.items()}) for one in headers]
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
    assert len({str(answer.json() | {"instance": ""}) for answer in answers}) == 1
    assert stranger.get("/api/v1/runs", headers=with_key(valid)).status_code == 200


def test_only_admins_reach_the_keys(stranger: TestClient, database: Database) -> None:
    for role in ("viewer", "operator"):
        headers = with_key(key_of(database, role))  # type: ignore[arg-type]
        assert stranger.get("/api/v1/keys", headers=headers).status_code == 403
        refused = stranger.post("/api/v1/keys", json={"name": "more"}, headers=headers)
        assert refused.status_code == 403
        assert f"Your role is {role} but this needs admin" in refused.json()["detail"]
    headers = with_key(key_of(database, "admin", "lab"))
    assert stranger.post("/api/v1/keys", json={"name": "a", "project_id": "lab"}, headers=headers).status_code == 201
    for project in ("default", "*"):
        refused = stranger.post("/api/v1/keys", json={"name": "a", "project_id": project}, headers=headers)
        assert refused.status_code == 403
        assert "make keys of your project" in refused.json()["detail"]


def test_use_is_written_at_most_once_a_minute(stranger: TestClient, database: Database) -> None:
    key = key_of(database, "viewer")
    id = key.split("_")[1]
    writes: list[str] = []

    @event.listens_for(stranger.app.state.database.engine, "before_cursor_execute")  # type: ignore[attr-defined]
    def _count(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE"):
            writes.append(statement)

    for _ in range(5):
        assert stranger.get("/api/v1/me", headers=with_key(key)).status_code == 200
    assert len(writes) == 1
    with database.write() as session:
        long_ago = datetime.now(UTC) - timedelta(seconds=61)
        session.execute(update(ApiKey).where(ApiKey.id == id).values(last_used_at=long_ago))
    assert stranger.get("/api/v1/me", headers=with_key(key)).status_code == 200
    assert len(writes) == 2
    with database.read() as session:
        used = session.scalar(select(ApiKey.last_used_at).where(ApiKey.id == id))
    assert used is not None
    assert used > datetime.now(UTC) - timedelta(seconds=30)


@pytest.mark.attack(24)
def test_no_secret_is_stored_logged_or_told(
    stranger: TestClient, database: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = key_of(database, "admin", "*")
    secret = key.rpartition("_")[2]
    told = [
        stranger.get("/api/v1/keys", headers=with_key(key)),
        stranger.get("/api/v1/keys", headers=with_key(key + "0")),
        stranger.post("/api/v1/keys", content=key, headers=with_key(key) | {"Content-Type": "application/json"}),
        stranger.get(f"/api/v1/runs/{key}/metrics"),
        stranger.get("/api/v1/me", headers={"X-Key": key}),
    ]
    assert all(secret not in answer.text for answer in told)
    # The test's own client logs the addresses it asks for.
    assert [one for one in caplog.records if secret in one.getMessage() and not one.name.startswith("httpx")] == []
    with database.read() as session:
        rows = session.execute(text("SELECT * FROM api_keys")).all()
    assert rows
    assert secret not in str(rows)
    if database_url.startswith("sqlite"):
        for file in database_url.removeprefix("sqlite:///"), database_url.removeprefix("sqlite:///") + "-wal":
            assert secret.encode() not in Path(file).read_bytes()
