"""docker-compose.yml without docker: every service's own command against real PostgreSQL and Valkey, up to a trained run."""

import secrets
import time

import httpx
import psycopg
import pytest

from tests.production.compose_file import services
from tests.production.native_stack import NativeStack, native_stack
from tests.worker.runs import short_spec

pytestmark = pytest.mark.timeout(280)


def test_every_service_starts_is_healthy_trains_and_ends_within_its_grace_period() -> None:
    password = secrets.token_hex(16) + "%/@: "  # nothing in it may be taken for a part of an address
    with native_stack(services({"cpu"}), password.strip()) as stack:
        stack.start("postgres", "redis", "migrate")
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(host="127.0.0.1", port=stack.ports[5432], user="incipit", dbname="incipit")
        key = stack.run("api", "incipit", "keys", "create", "me", "--role", "admin", "--project", "*").strip()
        for name in ("worker-control", "worker-cpu"):
            assert not stack.is_healthy(name), "nothing of it was heard of yet"
        stack.start(*list(stack.services)[3:])
        assert set(stack.processes) == set(stack.services)
        with httpx.Client(
            base_url=f"http://127.0.0.1:{stack.ports[8000]}",
            headers={"Authorization": f"Bearer {key}"},
            trust_env=False,
            timeout=30,
        ) as client:
            assert client.get("/readyz").json()["status"] == "ok"
            run_id = _submitted(client)
            _await_run(client, run_id, "succeeded")
            (checkpoint, *_) = client.get(f"/api/v1/runs/{run_id}/checkpoints").raise_for_status().json()
            archive = client.get(f"/api/v1/checkpoints/{checkpoint['id']}/archive").raise_for_status()
            assert len(archive.content) > 100_000
            _stop_at_work(stack, client)
        everything = "".join(path.read_text(errors="replace") for path in stack.folder.glob("*.log"))
        assert password.strip() not in everything
        assert key not in everything


def _stop_at_work(stack: NativeStack, client: httpx.Client) -> None:
    """Ends all while a run is at work, in the order in which Compose does: what others need last."""
    run_id = _submitted(client, num_steps=5000, checkpoints={"every_steps": 4000})
    _await_run(client, run_id, "running", steps=3)
    order = [name for name in reversed(stack.services) if name not in ("migrate", "redis", "postgres", "api")]
    for name in order:
        stack.stop(name)
    run = client.get(f"/api/v1/runs/{run_id}").raise_for_status().json()
    assert (run["state"], run["attempt"]) == ("queued", 0), "the worker gave it back with a checkpoint"
    assert client.get(f"/api/v1/runs/{run_id}/checkpoints").raise_for_status().json()[0]["step"] >= 3
    for name in ("api", "redis", "postgres"):
        stack.stop(name)


def _submitted(client: httpx.Client, **changes: object) -> str:
    body = {"name": "q", "base": short_spec(**changes).model_dump(mode="json")}
    experiment = client.post("/api/v1/experiments", json=body).raise_for_status().json()
    return str(client.get(f"/api/v1/experiments/{experiment['id']}/runs").raise_for_status().json()[0]["id"])


def _await_run(client: httpx.Client, run_id: str, state: str, steps: int = 0) -> None:
    deadline = time.monotonic() + 120
    while (run := client.get(f"/api/v1/runs/{run_id}").raise_for_status().json())["state"] != state or (
        run["step"] < steps
    ):
        assert time.monotonic() < deadline, run
        assert run["state"] not in ("failed", "cancelled"), run
        time.sleep(0.2)
