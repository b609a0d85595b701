"""The history as server-sent events: from a process that serves, to readers that come, go, and come back."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from backend.app import create_app
from backend.database import Database
from backend.limits import Limits
from backend.queries.transitions import transition
from backend.settings import Settings
from tests import databases
from tests.access import SIGNED_IN, key_of, with_key
from tests.worker.runs import claim, queue_runs, short_spec


@pytest.fixture
def database_url(home: Path) -> str:
    """SQLite alone: the queries behind it are tested on both."""
    return databases.sqlite_copy(home)


@pytest.fixture
def app(settings: Settings) -> Any:
    return create_app(settings)


@pytest.fixture
def http(app: Any) -> Iterator[httpx.Client]:
    """A client of a server in this process, which ends within seconds whatever is open."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, timeout_graceful_shutdown=1, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=20, headers=SIGNED_IN) as client:
        yield client
    server.should_exit = True
    thread.join(timeout=15)
    assert not thread.is_alive()


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events of a stream as they come."""
    event: dict[str, Any] = {}
    for line in response.iter_lines():
        if line.startswith(":"):
            continue
        if not line:
            if event:
                yield event
            event = {}
            continue
        field, _, value = line.partition(": ")
        event[field] = json.loads(value) if field == "data" else value


def _ended_run(database: Database) -> str:
    """A run with five events, the last of which ended it."""
    (run_id,) = queue_runs(database, short_spec())
    claimed = claim(database)
    with database.write() as session:
        for to in ("running", "cancelling", "cancelled"):
            transition(session, run_id, to, actor="holder", reason="A test.", fence=claimed.fence)
    return run_id


def test_an_ended_run_is_told_whole_and_then_the_stream_ends(http: httpx.Client, database: Database) -> None:
    run_id = _ended_run(database)
    with http.stream("GET", f"/runs/{run_id}/stream") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        told = list(_events(response))
    history = [event for event in told if "id" in event]
    assert [event["id"] for event in history] == ["1", "2", "3", "4", "5"]
    assert {event["event"] for event in history} == {"state"}
    listed = http.get(f"/runs/{run_id}/events").json()["items"]
    assert [event["data"] for event in history] == listed
    assert [event["event"] for event in told[-2:]] == ["progress", "end"]
    assert told[-1]["data"] == {"state": "cancelled"}


def test_who_comes_back_gets_what_was_missed_and_no_more(http: httpx.Client, database: Database) -> None:
    run_id = _ended_run(database)
    with http.stream("GET", f"/runs/{run_id}/stream", headers={"Last-Event-ID": "3"}) as response:
        assert [event["id"] for event in _events(response) if "id" in event] == ["4", "5"]


def test_an_id_of_another_history_is_told_and_all_is_sent(http: httpx.Client, database: Database) -> None:
    run_id = _ended_run(database)
    with http.stream("GET", f"/runs/{run_id}/stream", headers={"Last-Event-ID": "99999999999999999999"}) as response:
        first, *rest = _events(response)
    assert (first["event"], first["data"]) == ("resync", {"last_seq": 5})
    assert [event["id"] for event in rest if "id" in event] == ["1", "2", "3", "4", "5"]


def test_what_happens_is_told_within_two_seconds(http: httpx.Client, database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    with http.stream("GET", f"/runs/{run_id}/stream") as response:
        events = _events(response)
        assert next(events)["data"]["payload"]["state"] == "queued"
        assert next(events)["data"]["state"] == "queued"
        began = time.monotonic()
        claim(database)
        told = next(events)
        assert time.monotonic() - began < 2
        assert (told["event"], told["data"]["payload"]["state"]) == ("state", "starting")


def test_a_stream_ends_after_its_time(http: httpx.Client, database: Database, app: Any) -> None:
    (run_id,) = queue_runs(database, short_spec())
    settings = app.state.settings
    app.state.settings = settings.model_copy(update={"limits": Limits(stream_seconds=0.5)})
    with http.stream("GET", f"/runs/{run_id}/stream") as response:
        told = list(_events(response))
    assert [event["event"] for event in told] == ["state", "progress"], "it ends without saying that the run has ended"
    assert Limits().stream_seconds == 6 * 3600


@pytest.mark.parametrize(("given", "status"), [("x", 422), ("-1", 422), ("²", 422), ("9" * 21, 422)])
def test_a_wrong_id_is_refused_before_the_stream_begins(
    http: httpx.Client, database: Database, given: str, status: int
) -> None:
    run_id = _ended_run(database)
    response = http.get(f"/runs/{run_id}/stream", headers={"Last-Event-ID": given.encode()})
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"


def test_a_run_that_is_not_there_has_no_stream(http: httpx.Client) -> None:
    assert http.get("/runs/nothing/stream").status_code == 404


@pytest.mark.attack(30)
def test_the_place_behind_the_last_is_refused_and_one_that_closes_is_free_again(
    http: httpx.Client, database: Database, app: Any
) -> None:
    (run_id,) = queue_runs(database, short_spec())
    app.state.stream_places.limit = 2
    with contextlib.ExitStack() as stack:
        responses = [stack.enter_context(http.stream("GET", f"/runs/{run_id}/stream")) for _ in range(2)]
        readers = [_events(response) for response in responses]  # kept: a reader that is dropped closes its stream
        assert [next(reader)["id"] for reader in readers] == ["1", "1"]
        refused = http.get(f"/runs/{run_id}/stream")
        assert refused.status_code == 503
        assert refused.json()["detail"].startswith("2 streams are open, as many as one API process holds;")
    deadline = time.monotonic() + 10
    while app.state.stream_places.num_open and time.monotonic() < deadline:
        time.sleep(0.05)
    assert app.state.stream_places.num_open == 0


@pytest.mark.attack(30)
def test_one_key_may_not_take_all_places_nor_see_another_project(
    http: httpx.Client, database: Database, app: Any
) -> None:
    (run_id,) = queue_runs(database, short_spec())
    app.state.stream_places.limit_each = 1
    viewer, stranger = with_key(key_of(database, "viewer")), with_key(key_of(database, "viewer", "other"))
    with http.stream("GET", f"/runs/{run_id}/stream", headers=viewer) as response:
        reader = _events(response)
        assert next(reader)["id"] == "1"
        refused = http.get(f"/runs/{run_id}/stream", headers=viewer)
        assert refused.status_code == 503
        assert refused.json()["detail"].startswith("You have 1 streams open, as many as one key may;")
        assert http.get(f"/runs/{run_id}/stream", headers=stranger).status_code == 404
