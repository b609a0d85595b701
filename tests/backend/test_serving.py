"""`python -m backend` as people start it: a real process that serves, or says in one sentence why not."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from backend.__main__ import main
from backend.database import Database
from tests import databases
from tests.access import key_of, with_key


@pytest.fixture
def database_url(home: Path) -> str:
    """SQLite alone: the process is the subject here."""
    return databases.sqlite_copy(home)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _started(**environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "backend"]
    return subprocess.Popen(
        command, env=os.environ | environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.attack(24)
def test_it_serves_until_it_is_told_to_stop(database_url: str, database: Database) -> None:
    key = key_of(database, "viewer")
    port = _free_port()
    with _started(
        INCIPIT_PORT=str(port), INCIPIT_DATABASE_URL=database_url, INCIPIT_ALLOWED_HOSTS='["inner"]'
    ) as process:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                try:
                    assert client.get("/livez", headers={"Host": "inner:80"}).status_code == 200
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            assert client.get("/api/v1/runs").status_code == 401
            assert client.get("/api/v1/runs", headers=with_key(key)).json() == {"items": [], "next_cursor": None}
            for pasted in (f"/api/v1/runs/{key}/metrics", f"/api/v1/runs?search={key}", "/livez?signature=a-secret"):
                assert client.get(pasted).status_code in (200, 401)
            assert "server" not in client.get("/livez").headers
            quickest = min(client.get("/livez").elapsed.total_seconds() for _ in range(30))
            assert quickest < 0.035, "the answer waits for the acknowledgement of its first half, 40 ms on Linux"
        process.terminate()
        log, _ = process.communicate(timeout=30)
    assert process.returncode in (0, -15), log
    assert "GET /api/v1/runs/{run_id}/metrics 401" in log
    assert key.rpartition("_")[2] not in log
    assert "a-secret" not in log


@pytest.mark.parametrize(
    ("environment", "status", "sentence"),
    [
        (
            {"INCIPIT_HOST": "0.0.0.0"},
            78,
            "Nobody could use the API on 0.0.0.0: there is no valid API key; make one with",
        ),
        ({}, 78, "Nobody could use the API on 127.0.0.1: there is no valid API key; make one with"),
        (
            {"INCIPIT_HOST": "0.0.0.0", "INCIPIT_LOCAL_TOKEN": "a-secret"},
            78,
            "host is '0.0.0.0', which other machines can reach, but INCIPIT_LOCAL_TOKEN is for a stack on one machine;",
        ),
        ({"INCIPIT_PORT": "70000"}, 78, "INCIPIT_PORT is '70000': Input should be less than or equal to 65535."),
        (
            {"INCIPIT_LIMITS__PAGE_ITEMS": "0"},
            78,
            "INCIPIT_LIMITS__PAGE_ITEMS is '0': Input should be greater than or equal to 1.",
        ),
        (
            {"INCIPIT_ALLOWED_HOSTS": "incipit.example.org"},
            78,
            "INCIPIT_ALLOWED_HOSTS is 'incipit.example.org', which is no JSON list of texts; write one such as "
            '["incipit.example.org"].',
        ),
        (
            {"INCIPIT_ALLOWED_ORIGINS": '"https://a.example"'},
            78,
            "INCIPIT_ALLOWED_ORIGINS is '\"https://a.example\"', which is no JSON list of texts; write one such as "
            '["https://incipit.example.org"].',
        ),
        (
            {"INCIPIT_WEBHOOK_NETWORKS": "[10]"},
            78,
            "INCIPIT_WEBHOOK_NETWORKS is '[10]', which is no JSON list of texts; write one such as [\"10.1.0.0/16\"].",
        ),
        ({"INCIPIT_DATABASE_URL": "mysql://me:secret@x"}, 78, "INCIPIT_DATABASE_URL must begin with sqlite:///FILE or"),
        ({"INCIPIT_DATABASE_URL": "sqlite:///{home}/other"}, 78, "The database has schema none but this version needs"),
        (
            {"INCIPIT_DATABASE_URL": "postgresql+psycopg://me:secret@127.0.0.1:1/x"},
            1,
            "The database of INCIPIT_DATABASE_URL does",
        ),
    ],
)
@pytest.mark.attack(13, 23)
def test_what_prevents_it_is_one_sentence(
    database_url: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    status: int,
    sentence: str,
) -> None:
    for name, value in ({"INCIPIT_DATABASE_URL": database_url} | environment).items():
        monkeypatch.setenv(name, value.format(home=home))
    with pytest.raises(SystemExit) as ended:
        main()
    said, log = capsys.readouterr()
    assert (said, ended.value.code, log.count("\n")) == ("", status, 1), log
    assert log.startswith(f"incipit: {sentence}")
    assert "secret" not in log


def test_a_port_in_use_is_named(database_url: str, database: Database) -> None:
    key_of(database, "viewer")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with _started(INCIPIT_PORT=port, INCIPIT_DATABASE_URL=database_url) as process:
            log, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert log.startswith(
        f"incipit: Cannot listen on 127.0.0.1, port {port} (Address already in use); set INCIPIT_PORT"
    )
