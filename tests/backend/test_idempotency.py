"""A creating request that is sent again makes nothing new; on both databases, and with two requests at once."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text, update

from backend.access_records import IdempotentRequest
from backend.app import create_app
from backend.database import Database
from backend.settings import Settings
from tests.access import key_of, with_key
from tests.backend.conftest import ADDRESS
from tests.backend.recorded import stored_counts

Document = dict[str, Any]


def _post(client: TestClient, body: Document, key: str, path: str = "experiments", **headers: str) -> Any:
    return client.post(f"/api/v1/{path}", json=body, headers={"Idempotency-Key": key} | headers)


@pytest.mark.parametrize("path", ["experiments", "preflights", "analyses"])
def test_the_same_key_and_body_give_the_same_answer(client: TestClient, base: Document, path: str) -> None:
    body = {"experiments": {"name": "q", "base": base}, "preflights": base, "analyses": {"run": base}}[path]
    first, again = (_post(client, body, "k", path) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert first.headers["location"] == again.headers["location"] == f"/api/v1/{path}/{first.json()['id']}"
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    found = client.get(f"/api/v1/{path}").json()
    assert [one["id"] for one in found] == [first.json()["id"]]
    assert _post(client, body, "another", path).json()["id"] != first.json()["id"]
    assert client.post(f"/api/v1/{path}", json=body).json()["id"] != first.json()["id"]


def test_the_same_key_with_another_body_is_refused(client: TestClient, base: Document, database: Database) -> None:
    body = {"name": "q", "base": base}
    assert _post(client, body, "k").status_code == 201
    same = {"base": dict(reversed(base.items())), "name": "q", "note": ""}
    assert _post(client, same, "k").headers["idempotency-replayed"] == "true"
    refused = _post(client, body | {"name": "another"}, "k")
    assert refused.status_code == 422
    assert "The Idempotency-Key 'k' was used for another body; take a new key" in refused.json()["detail"]
    assert stored_counts(database) == (1, 1)


def test_a_key_belongs_to_one_person_and_one_operation(settings: Settings, database: Database, base: Document) -> None:
    with TestClient(create_app(settings), base_url=ADDRESS) as client:
        people = [with_key(key_of(database, "operator")) for _ in range(2)]
        answers = [_post(client, {"name": "q", "base": base}, "k", **who) for who in people]
        answers.append(_post(client, base, "k", "preflights", **people[0]))
    assert [answer.status_code for answer in answers] == [201] * 3
    assert all("idempotency-replayed" not in answer.headers for answer in answers)


def test_a_refused_request_leaves_its_key_free(client: TestClient, base: Document, database: Database) -> None:
    bad = {"name": "q", "base": base, "variants": [{"name": "a", "changes": {"prefix.tokens": 500}}]}
    assert _post(client, bad, "k").status_code == 422
    assert _post(client, {"name": "q", "base": base}, "k").status_code == 201
    assert stored_counts(database) == (1, 1)


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "caf\xe9"])
def test_a_key_that_is_none_is_refused(client: TestClient, base: Document, key: str, database: Database) -> None:
    headers = {b"Idempotency-Key": key.encode("latin-1")}
    refused = client.post("/api/v1/experiments", json={"name": "q", "base": base}, headers=headers)  # type: ignore[arg-type]
    assert refused.status_code == 422
    assert "Idempotency-Key" in refused.json()["errors"][0]["field"]
    assert stored_counts(database) == (0, 0)


def test_after_a_day_a_key_is_forgotten(client: TestClient, base: Document, database: Database) -> None:
    body = {"name": "q", "base": base}
    first = _post(client, body, "k").json()
    _age(database, timedelta(hours=23, minutes=59))
    assert _post(client, body, "k").json() == first
    _age(database, timedelta(hours=24, minutes=1))
    assert _post(client, body, "new").json() != first
    with database.read() as session:
        assert session.scalars(select(IdempotentRequest.key)).all() == ["new"], "what is old is removed"
    assert _post(client, body, "k").json() != first


def _age(database: Database, age: timedelta) -> None:
    with database.write() as session:
        session.execute(update(IdempotentRequest).values(created_at=datetime.now(UTC) - age))


@contextmanager
def _nobody_can_write(database: Database) -> Iterator[None]:
    with database.write() as session:
        session.execute(
            text("SELECT 1") if database.is_sqlite else text("LOCK TABLE experiments IN ACCESS EXCLUSIVE MODE")
        )
        yield


def _in_threads(*calls: Callable[[], Any]) -> list[threading.Thread]:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    return threads


def test_while_the_first_is_being_answered_a_second_is_told_to_come_back(
    client: TestClient, base: Document, database: Database
) -> None:
    body, answers = {"name": "q", "base": base}, []
    with _nobody_can_write(database):
        (first,) = _in_threads(lambda: answers.append(_post(client, body, "k")))
        while not client.app.state.in_flight._names:  # type: ignore[attr-defined]
            time.sleep(0.01)
        second = _post(client, body, "k")
        assert second.status_code == 409
        assert second.headers["retry-after"] == "1"
        assert "is still being answered; send it again in a second." in second.json()["detail"]
    first.join(30)
    assert answers[0].status_code == 201
    assert _post(client, body, "k").content == answers[0].content
    assert stored_counts(database) == (1, 1)


def test_two_processes_with_the_same_key_make_one_experiment(
    settings: Settings, base: Document, database: Database
) -> None:
    body, answers, key = {"name": "q", "base": base}, [], str(uuid4())
    who = with_key(key_of(database, "operator"))
    with (
        TestClient(create_app(settings), base_url=ADDRESS, headers=who) as one,
        TestClient(create_app(settings), base_url=ADDRESS, headers=who) as other,  # of another process's memory
    ):
        with _nobody_can_write(database):
            threads = _in_threads(*(lambda c=c: answers.append(_post(c, body, key)) for c in (one, other)))
        for thread in threads:
            thread.join(30)
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].content == answers[1].content
    assert sorted(answer.headers.get("idempotency-replayed", "") for answer in answers) == ["", "true"]
    assert stored_counts(database) == (1, 1)
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(IdempotentRequest)) == 1
