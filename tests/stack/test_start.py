"""What a start is refused for: each in one sentence."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from incipit.stack import StackError, StackState, running_stack
from incipit.stack.home import filesystem_of, opened_home
from incipit.stack.ports import LOOPBACK, chosen_port, is_free
from incipit.stack.service import Service, end_orphan, started_at
from incipit.stack.state import only_stack, write_state
from worker.identity import ProcessIdentity

_INCIPIT = [sys.executable, "-c", "from incipit.cli import app; app()"]


def _state(*, is_ready: bool = True, launcher: str = ProcessIdentity.own().name) -> StackState:
    return StackState(
        is_ready=is_ready, launcher=launcher, api_url="http://127.0.0.1:8123", dashboard_url=None, broker_url=""
    )


@pytest.mark.attack(22)
def test_a_home_is_made_for_its_user_alone(tmp_path: Path) -> None:
    home = opened_home(tmp_path / "a" / "b", needs_local_disk=True)
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "logs").is_dir()


def test_a_full_disk_is_said_with_value_limit_and_fix(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=r"has \d+ MiB free but Incipit needs at least \d+ MiB; make room"):
        opened_home(tmp_path, needs_local_disk=True, min_free_bytes=2**60)


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StackError, match="is not a folder; choose another with --home"):
        opened_home(tmp_path / "file", needs_local_disk=True)


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    mounts = [("/", "ext4"), (str(tmp_path), "tmpfs"), (str(tmp_path), "nfs4"), (str(tmp_path / "other"), "xfs")]
    assert filesystem_of(tmp_path / "home", mounts) == "nfs4"
    assert filesystem_of(Path("/"), mounts) == "ext4"
    assert filesystem_of(tmp_path, []) == ""


def test_a_port_in_use_is_said_and_a_free_one_is_found() -> None:
    with socket.socket() as holder:
        holder.bind((LOOPBACK, 0))
        holder.listen()
        taken = holder.getsockname()[1]
        assert not is_free(taken)
        with pytest.raises(StackError, match=rf"Port {taken} on 127.0.0.1 is in use .* choose another with --port"):
            chosen_port(taken, "--port", [])
        chosen = chosen_port(None, "--port", [taken])
    assert chosen != taken
    assert chosen_port(chosen, "--port", []) == chosen


def test_one_launcher_holds_a_home_and_a_second_is_told_the_address(home: Path) -> None:
    with only_stack(home):
        write_state(home, _state())
        with (
            pytest.raises(StackError, match=r"already runs in .* its address is http://127.0.0.1:8123"),
            only_stack(home),
        ):
            pass
        found = running_stack(home)
        assert found is not None
        assert found.api_url == "http://127.0.0.1:8123"
        write_state(home, _state(is_ready=False))
        assert running_stack(home) is None
        write_state(home, _state(launcher=replace(ProcessIdentity.own(), started=1).name))
        assert running_stack(home) is None, "its launcher was killed"
    with only_stack(home):
        pass


def test_incipit_up_answers_bad_input_with_one_sentence(home: Path) -> None:
    with socket.socket() as holder:
        holder.bind((LOOPBACK, 0))
        holder.listen()
        taken = holder.getsockname()[1]
        asked = subprocess.run([*_INCIPIT, "up", "--port", str(taken)], capture_output=True, text=True)
    assert asked.returncode == 1
    assert asked.stderr.count("\n") == 1
    assert f"Port {taken}" in asked.stderr
    assert not (home / "incipit.sqlite3").exists()


def test_a_process_that_an_earlier_launcher_left_behind_is_ended(tmp_path: Path) -> None:
    service = Service(
        "sleeper",
        [sys.executable, "-c", "import time; time.sleep(60)"],
        environment=os.environ,
        log_path=tmp_path / "s.log",
    )
    service.start()
    assert service.pid is not None
    started = started_at(service.pid)
    assert started is not None
    end_orphan(service.pid, started - 100, 5)
    assert service.exit_code() is None, "a reused pid belongs to somebody else"
    end_orphan(service.pid, started, 5)
    assert service.exit_code() is not None


def test_a_service_that_ignores_sigterm_is_killed_with_its_group(tmp_path: Path) -> None:
    code = "import os, signal, time; signal.signal(15, signal.SIG_IGN); os.fork(); print(os.getpid(), flush=True); time.sleep(60)"
    log = tmp_path / "stubborn.log"
    service = Service("stubborn", [sys.executable, "-c", code], environment=os.environ, log_path=log)
    service.start()
    while not log.exists() or len(log.read_text().split()) < 2:
        pass
    assert not service.stop(seconds=0.2)
    assert [started_at(int(pid)) for pid in log.read_text().split()] == [None, None]


def test_doctor_reports_what_a_start_needs(home: Path) -> None:
    told = subprocess.run([*_INCIPIT, "doctor", "--json"], capture_output=True, text=True, check=True)
    checks = {check["name"]: check for check in json.loads(told.stdout)}
    assert checks["broker"]["detail"].startswith("Valkey server v=9")
    assert str(home) in checks["home"]["detail"]
    assert {"torch", "sqlite", "gpu", "stack"} <= set(checks)
