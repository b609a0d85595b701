"""The embedded broker with the real Valkey binary."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from incipit.stack import StackError
from incipit.stack.broker import answers, broker_binary, broker_service
from incipit.stack.service import Service


@pytest.fixture
def short_tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of this test alone whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="inc", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture
def home(home: Path) -> Path:
    (home / "logs").mkdir()
    return home


@pytest.fixture
def started(home: Path, short_tmp: Path) -> Iterator[tuple[Service, Path]]:  # noqa: ARG001  # it holds the socket
    """A running broker and its socket."""
    service, socket = broker_service(home, os.environ)
    service.start()
    _await(socket)
    yield service, socket
    service.kill()


def _await(socket: Path) -> None:
    deadline = time.monotonic() + 20
    while not answers(socket):
        assert time.monotonic() < deadline, "the broker does not answer"
        time.sleep(0.02)


def _client(socket: Path) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(socket), decode_responses=True)


def test_the_pinned_binary_is_valkey_9() -> None:
    told = subprocess.run([str(broker_binary()), "--version"], capture_output=True, text=True, check=True)
    assert told.stdout.startswith("Valkey server v=9.1")


def test_the_broker_keeps_what_it_was_told_and_evicts_nothing(started: tuple[Service, Path], home: Path) -> None:
    service, socket = started
    with _client(socket) as client:
        assert client.config_get("appendonly", "maxmemory-policy", "port") == {
            "appendonly": "yes", "maxmemory-policy": "noeviction", "port": "0",
        }  # fmt: skip
        client.rpush("runs", "a", "b")
    assert service.stop()
    assert not answers(socket)
    again, socket = broker_service(home, os.environ)
    again.start()
    _await(socket)
    with _client(socket) as client:
        assert client.lrange("runs", 0, -1) == ["a", "b"]
    again.stop()


def test_only_this_user_reaches_the_socket(started: tuple[Service, Path]) -> None:
    socket = started[1]
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    assert socket.stat().st_mode & 0o077 == 0


def test_a_folder_that_others_can_open_is_refused(home: Path, short_tmp: Path) -> None:
    (short_tmp / f"incipit-{os.getuid()}").mkdir()
    (short_tmp / f"incipit-{os.getuid()}").chmod(0o755)
    with pytest.raises(StackError, match="not a folder of yours alone"):
        broker_service(home, os.environ)


def test_a_folder_that_is_a_link_is_refused(home: Path, short_tmp: Path) -> None:
    (short_tmp / "elsewhere").mkdir(mode=0o700)
    (short_tmp / f"incipit-{os.getuid()}").symlink_to(short_tmp / "elsewhere")
    with pytest.raises(StackError, match="not a folder of yours alone"):
        broker_service(home, os.environ)


def test_a_server_that_was_left_behind_is_ended_and_its_data_found(started: tuple[Service, Path], home: Path) -> None:
    socket = started[1]
    with _client(socket) as client:
        client.rpush("runs", "kept")
        old = client.info()["process_id"]
    again, same = broker_service(home, os.environ)
    assert same == socket
    assert not answers(socket)
    again.start()
    _await(socket)
    with _client(socket) as client:
        assert client.info()["process_id"] != old
        assert client.lrange("runs", 0, -1) == ["kept"]
    again.stop()


def test_the_socket_of_a_killed_server_is_no_obstacle(started: tuple[Service, Path], home: Path) -> None:
    service, socket = started
    service.kill()
    assert socket.exists()
    again, socket = broker_service(home, os.environ)
    again.start()
    _await(socket)
    assert again.stop()


def test_a_path_too_long_for_a_socket_is_said_before_anything_starts(
    home: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = short_tmp / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(StackError, match="socket is too long"):
        broker_service(home, os.environ)
