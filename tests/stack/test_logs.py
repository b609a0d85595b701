"""What real processes log: JSON lines that name request and run, and no secret, wherever it was put in."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.engine import make_url

from backend.database import Database
from backend.records import Attempt, Event
from incipit.stack import LocalStack
from incipit.stack.local_token import local_token
from tests import databases
from tests.worker.runs import run_row, short_spec

_PASSWORD = "planted-Pass%2Fword"
_HF_TOKEN = "planted-token-of-the-hub"
_JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJwbGFudGVkIn0.cGxhbnRlZC1zaWduYXR1cmU"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def database_url(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """PostgreSQL, whose address has a password that the server does not ask for."""
    assert home  # whose set-up takes the developer's own settings away first
    with databases.postgres_copy() as url:
        address = databases.render(make_url(url).set(username="postgres", password="x")).replace(
            ":x@", f":{_PASSWORD}@"
        )
        monkeypatch.setenv("INCIPIT_DATABASE_URL", address)
        monkeypatch.setenv("HF_TOKEN", _HF_TOKEN)
        yield address


def test_real_processes_log_json_lines_of_requests_and_runs_and_no_secret(home: Path, database_url: str) -> None:
    database = Database(database_url)
    printed: list[str] = []
    with LocalStack(home, with_dashboard=False, report=printed.append) as stack:
        token = local_token(home)
        with httpx.Client(base_url=stack.api_url, timeout=30, trust_env=False) as client:
            secrets = _used_secrets(client, token, database)
    secrets += [_PASSWORD, "planted-Pass/word", _HF_TOKEN, token, _JWT.rpartition(".")[2]]
    printed.append(_log_of_a_control_process_without_database())
    with database.read() as session:
        rows = [repr((event.kind, event.payload)) for event in session.scalars(select(Event))]
        rows += [repr(vars(attempt)) for attempt in session.scalars(select(Attempt))]
    database.close()
    logs = {path: path.read_text() for path in home.rglob("*.log")}
    assert {path.name for path in logs} >= {"api.log", "worker.log", "control.log", "engine.log"}
    everything = {"printed": "\n".join(printed), "rows": "\n".join(rows), **logs}
    found = [(where, secret) for where, text in everything.items() for secret in secrets if secret in text]
    assert found == []

    lines = {name: _lines(logs[home / "logs" / f"{name}.log"]) for name in ("api", "worker", "control")}
    of_run = [line for line in lines["worker"] if "fence" in line]
    assert of_run
    assert all((line["attempt"], line["fence"], len(line["run"])) == (1, 1, 36) for line in of_run)
    requests = [line for line in lines["api"] if "route" in line]
    assert {line["principal"] for line in requests} >= {None, "local"}
    assert all(line["request_id"] and line["ms"] > 0 for line in requests)
    assert not [line for line in requests if line["route"] in ("/livez", "/readyz")]


def _used_secrets(client: httpx.Client, token: str, database: Database) -> list[str]:
    """Use every kind of secret, rightly and wrongly; those that the API has made."""
    local = {"Authorization": f"Bearer {token}"}
    made = client.post("/api/v1/keys", json={"name": "planted", "role": "operator"}, headers=local).raise_for_status()
    key = str(made.json()["key"])
    body = {"name": "q", "base": json.loads(short_spec().model_dump_json())}
    experiment = client.post("/api/v1/experiments", json=body, headers={"Authorization": f"Bearer {key}"})
    assert experiment.status_code == 201
    run_id = client.get(f"/api/v1/experiments/{experiment.json()['id']}/runs", headers=local).json()[0]["id"]
    answer = client.get(f"/api/v1/runs/{key}", headers=local)  # longer than any id
    assert answer.status_code == 422
    assert answer.json()["instance"] == f"urn:uuid:{answer.headers['X-Request-ID']}"
    for bad in (f"{key[:-1]}x", _JWT, _HF_TOKEN):
        assert client.get("/api/v1/me", headers={"Authorization": f"Bearer {bad}"}).status_code == 401
    client.get("/api/v1/runs", params={"search": f"{key} {token} {_JWT} {_HF_TOKEN} {_PASSWORD}"}, headers=local)
    deadline = time.monotonic() + 120
    while run_row(database, run_id).state not in ("succeeded", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    checkpoint = client.get(f"/api/v1/runs/{run_id}/checkpoints", headers=local).json()[0]
    link: dict[str, Any] = client.post(f"/api/v1/checkpoints/{checkpoint['id']}/link", headers=local).json()
    assert client.get(link["archive_url"]).status_code == 200
    assert client.get(link["archive_url"] + "0").status_code == 403
    return [key.rpartition("_")[2], link["archive_url"].partition("signature=")[2]]


def _log_of_a_control_process_without_database() -> str:
    address = f"postgresql+psycopg://me:{_PASSWORD}@127.0.0.1:1/none"
    command = [sys.executable, "-m", "worker.control"]
    with subprocess.Popen(
        command, env=os.environ | {"INCIPIT_DATABASE_URL": address}, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        process.kill()
    (said,) = _lines(line)
    assert (said["process"], said["level"]) == ("control", "warning")
    return line


def _lines(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines()]
