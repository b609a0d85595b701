"""Forks of a server are processes like those that are started by themselves: in how they begin, end and are ended.

The server is the real one; but for the last tests its engines are lines of Python, since torch makes no difference here.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.worker.engine_servers import LineServer, kept, server_of
from tests.worker.runs import short_spec
from worker.engine_process import EngineProcess
from worker.engine_server import EngineServer, ForkedEngine
from worker.slots import Slot

pytestmark = pytest.mark.skipif(not EngineServer.is_possible(), reason="needs Linux")

_SLEEP = "import time; time.sleep(60)"
_SECONDS = 10.0


class ThreadServer(LineServer):
    prepare = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"


def _until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EngineServer]:
    server = kept(server_of(LineServer, tmp_path))
    yield server
    server.end()


@pytest.fixture(autouse=True)
def engines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own settings are out of sight."""
    for name in [name for name in os.environ if name.startswith("INCIPIT_")]:
        monkeypatch.delenv(name)


def _engine(server: EngineServer, code: str, folder: Path, **environment: str) -> EngineProcess:
    return EngineProcess(
        [code],
        log_path=folder / "log",
        folder=folder,
        environment={"INCIPIT_HOME": str(folder), **Slot(0, None).environment(), **environment},
        server=server,
    )


def _forked(engine: EngineProcess) -> bool:
    return isinstance(engine._process, ForkedEngine)


def _said(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(70)", 70),
        ("import os; os._exit(255)", 255),
        ("raise ValueError('this one')", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_how_it_ended_is_told_exactly(server: EngineServer, tmp_path: Path, code: str, exit_code: int) -> None:
    engine = _engine(server, code, tmp_path)
    assert _forked(engine)
    assert engine.wait(_SECONDS) == exit_code
    assert engine.exit_code() == exit_code
    engine.kill()
    assert engine.exit_code() == exit_code
    assert ("this one" in engine.log_tail()) == (exit_code == 1)


def test_what_a_program_does_at_its_exit_is_done(server: EngineServer, tmp_path: Path) -> None:
    engine = _engine(server, "import atexit; atexit.register(print, 'last'); print('first')", tmp_path)
    assert engine.wait(_SECONDS) == 0
    engine.kill()
    assert _said(tmp_path) == ["first", "last"]


def test_it_stands_alone_in_its_folder_with_its_own_environment_and_reads_commands(
    server: EngineServer, tmp_path: Path
) -> None:
    code = """
import json, os
print(os.getcwd(), os.environ["INCIPIT_HOME"], os.environ.get("CUDA_VISIBLE_DEVICES"), os.getsid(0) == os.getpid())
print(sorted(os.listdir("/proc/self/fd"))[:3], len(os.listdir("/proc/self/fd")))
print(input())
print(sys.stdin.read() == "")
"""
    (tmp_path / "other").mkdir()
    engine = _engine(server, code, tmp_path / "other", CUDA_VISIBLE_DEVICES="GPU-5a")
    _until(lambda: len(_said(tmp_path / "other")) == 2)
    command = psutil.Process(engine.pid).cmdline()
    engine.tell({"command": "stop"})
    _until(lambda: len(_said(tmp_path / "other")) == 3)
    engine._stdin.close()
    assert engine.wait(_SECONDS) == 0
    engine.kill()
    place = str(tmp_path / "other")
    # The fourth descriptor is that of the listing.
    assert _said(tmp_path / "other") == [
        f"{place} {place} GPU-5a True",
        "['0', '1', '2'] 4",
        '{"command": "stop"}',
        "True",
    ]
    assert command[:4] == [sys.executable, "-P", "-m", "engine"]
    assert command[4].startswith(code[:20])
    without = _engine(server, "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))", tmp_path)
    without.wait(_SECONDS)
    without.kill()
    assert _said(tmp_path) == ["None"]


def test_no_secret_of_the_services_reaches_server_or_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("INCIPIT_DATABASE_URL", "INCIPIT_BROKER_URL", "INCIPIT_LOCAL_TOKEN", "CELERY_BROKER_URL"):
        monkeypatch.setenv(name, "the-secret")
    server = kept(server_of(LineServer, tmp_path))
    try:
        engine = _engine(server, "import os; print(os.environ)", tmp_path)
        assert _forked(engine)
        engine.wait(_SECONDS)
        assert "the-secret" not in (tmp_path / "log").read_text()
        assert b"the-secret" not in Path(f"/proc/{server.pid}/environ").read_bytes()
        engine.kill()
    finally:
        server.end()


def test_where_an_import_might_read_another_environment_it_is_started_by_itself(
    server: EngineServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = _engine(server, "--help", tmp_path, OMP_NUM_THREADS="7")
    assert not _forked(engine)
    assert engine.wait(60) == 0
    engine.kill()
    assert "environment differs: OMP_NUM_THREADS" in caplog.text
    assert "python -m engine" in _said(tmp_path)[0]


def test_a_server_with_threads_forks_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = kept(server_of(ThreadServer, tmp_path))
    try:
        engine = _engine(server, "--help", tmp_path)
        assert not _forked(engine)
        assert engine.wait(60) == 0
        engine.kill()
        assert "2 threads" in caplog.text
    finally:
        server.end()


def test_a_signal_right_behind_the_start_is_not_lost(server: EngineServer, tmp_path: Path) -> None:
    for _ in range(20):
        engine = _engine(server, _SLEEP, tmp_path)
        engine.terminate()
        assert engine.wait(_SECONDS) == -signal.SIGTERM
        engine.kill()
        engine = _engine(server, _SLEEP, tmp_path)
        engine.kill()
        assert engine.exit_code() == -signal.SIGKILL


def test_kill_ends_the_whole_group_and_returns_when_the_engine_is_gone(server: EngineServer, tmp_path: Path) -> None:
    code = f"import subprocess; print(subprocess.Popen([sys.executable, '-c', {_SLEEP!r}]).pid); {_SLEEP}"
    engine = _engine(server, code, tmp_path)
    _until(lambda: _said(tmp_path))
    child = int(_said(tmp_path)[0])
    assert not _gone(child)
    engine.kill()
    assert _gone(engine.pid)
    _until(lambda: _gone(child))
    engine.kill()


def test_its_pid_stays_its_own_until_its_end_was_noted(server: EngineServer, tmp_path: Path) -> None:
    engine = _engine(server, "pass", tmp_path)
    assert engine.wait(_SECONDS) == 0
    time.sleep(0.1)
    assert psutil.Process(engine.pid).status() == psutil.STATUS_ZOMBIE
    engine.kill()
    assert not psutil.pid_exists(engine.pid)


def test_two_engines_of_one_server_know_nothing_of_each_other(server: EngineServer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first = _engine(server, "print(input())", tmp_path)
    second = _engine(server, "print(input())", tmp_path / "other")
    first.kill()
    second.tell({"command": "go on"})
    assert second.wait(_SECONDS) == 0
    second.kill()
    assert (_said(tmp_path), _said(tmp_path / "other")) == ([], ['{"command": "go on"}'])


def test_engines_die_with_the_server_and_another_takes_its_place(server: EngineServer, tmp_path: Path) -> None:
    engines = [_engine(server, _SLEEP, tmp_path) for _ in range(2)]
    before = server.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    assert [engine.wait(1) for engine in engines] == [-signal.SIGKILL] * 2
    assert all(_gone(engine.pid) for engine in engines)
    for engine in engines:
        engine.kill()
    alone = _engine(server, "--help", tmp_path)
    assert not _forked(alone)
    assert alone.wait(60) == 0, "meanwhile an engine is started by itself"
    alone.kill()
    kept(server)
    assert server.pid != before
    engine = _engine(server, "sys.exit(5)", tmp_path)
    assert _forked(engine)
    assert engine.wait(_SECONDS) == 5
    engine.kill()


def test_a_server_that_cannot_work_is_not_started_again_and_again(tmp_path: Path) -> None:
    class BrokenServer(LineServer):
        prepare = "import no_such_module"

    server = kept(server_of(BrokenServer, tmp_path))
    engine = _engine(server, "--help", tmp_path)
    assert not _forked(engine)
    assert engine.wait(60) == 0
    engine.kill()
    broken = server.pid
    _until(lambda: broken is not None and _gone(broken))
    server.keep()
    assert server.pid == broken
    assert "no_such_module" in (tmp_path / "server.log").read_text()


_ASK = f"""
import os, sys, time
from pathlib import Path
from tests.worker.engine_servers import LineServer, kept, server_of
from tests.worker.test_engine_server import _engine
folder, name = Path(sys.argv[1]), sys.argv[2]
server = server_of(LineServer, folder)
if name:
    server.name = name
else:
    kept(server)
engine = _engine(server, {_SLEEP!r}, folder)
print(type(engine._process).__name__, server.pid, engine.pid, flush=True)
{_SLEEP}
"""


@pytest.mark.parametrize("is_owner", [False, True], ids=["one that asked", "the worker's main process"])
def test_an_engine_dies_with_whoever_asked_for_it(server: EngineServer, tmp_path: Path, is_owner: bool) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _ASK, str(tmp_path), "" if is_owner else server.name]
    asker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    assert asker.stdout is not None
    kind, server_pid, engine_pid = asker.stdout.readline().split()
    assert kind == "ForkedEngine"
    others = _engine(server, _SLEEP, tmp_path)
    asker.kill()
    killed_at = time.monotonic()
    asker.wait()
    asker.stdout.close()
    _until(lambda: _gone(int(engine_pid)))
    if is_owner:
        _until(lambda: _gone(int(server_pid)))
    assert time.monotonic() - killed_at < 1
    assert others.exit_code() is None
    others.kill()


def test_ctrl_c_and_what_a_service_manager_sends_to_all_do_not_end_the_server(
    server: EngineServer, tmp_path: Path
) -> None:
    engine = _engine(server, _SLEEP, tmp_path)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        assert server.pid is not None
        os.kill(server.pid, number)
    time.sleep(0.2)
    assert engine.exit_code() is None
    engine.kill()


def test_a_frozen_server_does_not_hold_up_a_kill(server: EngineServer, tmp_path: Path) -> None:
    engine = _engine(server, _SLEEP, tmp_path)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    began = time.monotonic()
    engine.kill()
    assert time.monotonic() - began < _SECONDS
    assert engine.exit_code() == -signal.SIGKILL
    assert _gone(engine.pid)
    os.kill(server.pid, signal.SIGCONT)


def test_whoever_loses_patience_with_a_server_starts_the_engine_and_is_not_served_later(tmp_path: Path) -> None:
    server = server_of(LineServer, tmp_path, patience_seconds=1)
    kept(server)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        engine = _engine(server, "open('twice', 'w')", tmp_path)
        assert not _forked(engine), "and so `engine` refuses these arguments"
        assert engine.wait(60) == 2
        engine.kill()
        os.kill(server.pid, signal.SIGCONT)
        engine = _engine(server, "sys.exit(3)", tmp_path)
        assert _forked(engine)
        assert engine.wait(_SECONDS) == 3
        engine.kill()
        assert not (tmp_path / "twice").exists()
    finally:
        server.end()


@pytest.mark.parametrize("kind", ["forked", "alone"])
def test_the_engine_itself_answers_the_same_either_way(engine_server: EngineServer, tmp_path: Path, kind: str) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(short_spec().model_dump_json())
    with (tmp_path / "answer").open("wb") as said:
        engine = EngineProcess(
            ["check", "--spec", str(spec)],
            log_path=tmp_path / "log",
            stdout=said.fileno(),
            folder=tmp_path,
            environment={"INCIPIT_HOME": str(tmp_path), **Slot(0, None).environment()},
            server=engine_server if kind == "forked" else None,
        )
    assert _forked(engine) == (kind == "forked")
    assert engine.wait(120) == 0
    engine.kill()
    assert '"student_parameters":112000' in (tmp_path / "answer").read_text()


def test_what_was_imported_has_started_nothing(engine_server: EngineServer, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text("{}")
    engine = EngineProcess(
        ["check", "--spec", str(spec)],
        log_path=tmp_path / "log",
        folder=tmp_path,
        environment={"INCIPIT_HOME": str(tmp_path), **Slot(0, None).environment()},
        server=engine_server,
    )
    assert _forked(engine)
    assert engine.wait(120) == 11
    engine.kill()
    assert engine_server.pid is not None
    server = psutil.Process(engine_server.pid)
    assert server.num_threads() == 1
    assert server.children() == []
    # stdin, stdout, stderr and the socket that it listens at.
    assert server.num_fds() == 4
