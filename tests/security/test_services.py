"""The services around the API: what reaches the worker by the broker, what they log, what they ship with."""

import base64
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pandas as pd
import pytest
import redis

from backend.doorbell import PREFLIGHT_TASK, QUEUE, RUN_TASK, Doorbell
from dashboard.csv_export import csv_of
from incipit.stack.broker import answers, broker_service, broker_url
from tests import databases
from tests.access import TOKEN
from tests.api_process import ApiProcess
from tests.security.canary import hostile_pickle

ROOT = Path(__file__).parents[2]
_SECONDS = 60.0


@pytest.fixture
def broker(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A broker's socket; in `home` lies an empty database, made before the temporary folder is another."""
    databases.sqlite_copy(home)
    (home / "logs").mkdir()
    with tempfile.TemporaryDirectory(prefix="inc", dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        service, path = broker_service(home, os.environ)
        service.start()
        _await(lambda: answers(path))
        yield path
        service.kill()


def _await(holds: object) -> None:
    assert callable(holds)
    deadline = time.monotonic() + _SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def _message(task: str, body: bytes, content_type: str = "application/json", **headers: object) -> str:
    """A message as Celery writes it, with any body."""
    id = str(uuid4())
    properties = {
        "correlation_id": id, "delivery_mode": 2, "delivery_tag": id, "body_encoding": "base64",
        "delivery_info": {"exchange": "", "routing_key": QUEUE}, "priority": 0,
    }  # fmt: skip
    named = {"id": id, "task": task, "lang": "py", "root_id": id, "argsrepr": "", "kwargsrepr": "", **headers}
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(), "content-encoding": "utf-8", "content-type": content_type,
            "headers": named, "properties": properties,
        }
    )  # fmt: skip


@pytest.mark.attack(21)
def test_hostile_messages_do_not_run_and_do_not_stop_a_worker(broker: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    code = hostile_pickle(canary)
    sound = json.dumps([["x"], {}, {}]).encode()
    hostile = [
        _message(RUN_TASK, code, "application/x-python-serialize"),
        _message(RUN_TASK, code, "application/data"),
        _message(RUN_TASK, code),
        _message(RUN_TASK, b"{"),
        _message(RUN_TASK, sound, "application/x-yaml"),
        _message("os.system", json.dumps([[f"touch {canary}"], {}, {}]).encode()),
        _message(RUN_TASK, json.dumps([["x"], {"k": "v" * 5_000_000}, {}]).encode()),
        _message(RUN_TASK, json.dumps([["../../etc/passwd", "'; DROP TABLE runs;--"], {}, {}]).encode()),
        _message(
            PREFLIGHT_TASK, json.dumps([[None], {}, {"chord": "x", "callbacks": [{"task": "os.system"}]}]).encode()
        ),
    ]
    log = tmp_path / "worker.log"
    environment = os.environ | {"INCIPIT_BROKER_URL": broker_url(broker)}
    with log.open("w") as file:
        worker = subprocess.Popen([sys.executable, "-m", "worker"], env=environment, stdout=file, stderr=file)
    try:
        with (
            redis.Redis(unix_socket_path=str(broker)) as queue,
            contextlib.closing(Doorbell(broker_url(broker))) as bell,
        ):
            queue.lpush(QUEUE, *hostile)
            bell.ring_preflight("sound")
            _await(lambda: re.search(rf"Task {PREFLIGHT_TASK}\[\S+\] succeeded", log.read_text(errors="replace")))
            assert queue.llen(QUEUE) == 0
        assert worker.poll() is None
    finally:
        worker.terminate()
        worker.wait(90)
    told = log.read_text(errors="replace")
    assert not canary.exists()
    assert "ContentDisallowed" in told
    assert "Received unregistered task of type 'os.system'" in told


@pytest.mark.attack(31, 24)
def test_a_log_line_of_a_stranger_is_one_line_without_escape_codes(home: Path, tmp_path: Path) -> None:
    api = ApiProcess(databases.sqlite_copy(home), INCIPIT_LOCAL_TOKEN=TOKEN)
    path = tmp_path / "api.log"
    with path.open("w") as log:
        api.start(log)
        forged = "x%0d%0a127.0.0.1:1%20-%20%22GET%20/forged%20HTTP/1.1%22%20200%1b[31m"
        for address in (f"/api/v1/runs/{forged}", f"/api/v1/runs?search={forged}", f"/{forged}"):
            assert httpx.get(api.url + address, trust_env=False).status_code in (401, 404)
        with socket.create_connection(("127.0.0.1", api.port)) as raw:
            raw.sendall(b"GET /api/v1/runs?search=\x1b[31m HTTP/1.1\r\nHost: 127.0.0.1\r\nX: \x1b[31m\r\n\r\n")
            raw.recv(65536)
        api.kill()
    told = path.read_bytes()
    # The line has the route's template and never the address.
    requests = [json.loads(line) for line in told.splitlines() if b'"route"' in line]
    assert [line["route"] for line in requests] == [None, "/api/v1/runs", None]
    assert b"forged" not in told
    assert not [line for line in told.splitlines() if line.startswith(b"127.0.0.1:1 ")]
    assert b"\x1b" not in told
    assert TOKEN.encode() not in told


@pytest.mark.attack(23)
def test_no_secret_comes_with_the_program() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    assert re.findall(r"PASSWORD:\s+(?!\$\{POSTGRES_PASSWORD:\?)\S+", compose) == []
    assert re.findall(r"://\w+:(?!\$\{POSTGRES_PASSWORD:\?)[^@\s]+@", compose) == []
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    kinds = (".py", ".yml", ".toml", ".json")
    text = b"".join((ROOT / name).read_bytes() for name in tracked if name.endswith(kinds) and (ROOT / name).is_file())
    assert re.findall(rb"incipit_[0-9a-f]{16}_[0-9a-f]{64}", text) == []


@pytest.mark.attack(19, 20)
def test_the_dashboard_serves_no_folder_and_keeps_its_protection() -> None:
    server = tomllib.loads((ROOT / "dashboard" / ".streamlit" / "config.toml").read_text())["server"]
    assert not server.get("enableStaticServing", False)
    assert server.get("enableXsrfProtection", True)
    assert server.get("enableCORS", True)


@pytest.mark.attack(28)
@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_name_in_a_csv_file_is_no_formula(start: str) -> None:
    hostile = f'{start}cmd|"/C calc"!A0'
    frame = pd.DataFrame({"arm": [hostile, "short"], "loss": [-0.5, 1.0], hostile: ["-1", None]})
    header, first, second = pd.read_csv(pd.io.common.StringIO(csv_of(frame)), header=None).fillna("").values.tolist()
    assert header == ["arm", "loss", f"'{hostile}"]
    assert first == [f"'{hostile}", "-0.5", "'-1"]
    assert second == ["short", "1.0", ""]
