"""The whole stack with real processes: runs survive Ctrl-C, what dies is started again, nothing is orphaned.

Runs whose processes are killed are in tests/faults. Slow: each test starts the stack and the engine more than once.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import redis
from sqlalchemy import select

from backend.database import Database
from backend.records import Attempt, Checkpoint
from backend.settings import Settings
from incipit.stack import LocalStack, StackState
from incipit.stack.local_token import local_token
from incipit.stack.service import started_at
from incipit.stack.state import read_state, running_stack
from tests.worker.runs import recorded_steps, run_row, short_spec
from worker.engine_server import EngineServer

_UP = [sys.executable, "-c", "from incipit.cli import app; app()", "up", "--no-dashboard"]
_SECONDS = 120.0
_NUM_STEPS = 150  # long enough to be interrupted on a fast machine

pytestmark = pytest.mark.timeout(400)


def _await(holds: Callable[[], object], what: str, seconds: float = _SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)


def _client(home: Path) -> httpx.Client:
    """The API of the stack that runs in a home, with its token."""
    state = read_state(home)
    assert state is not None
    credentials = {"Authorization": f"Bearer {local_token(home)}"}
    # Without TLS no certificates are read, which takes 40 ms: whoever waits asks often.
    url = f"{state.api_url}/api/v1"
    return httpx.Client(base_url=url, timeout=20, trust_env=False, verify=False, headers=credentials)


def _submit(home: Path, **changes: object) -> str:
    """Create an experiment with one run over the API; the run's id."""
    base = json.loads(short_spec(**changes).model_dump_json())
    with _client(home) as client:
        experiment = client.post("/experiments", json={"name": "q", "base": base}).raise_for_status().json()
        runs = client.get(f"/experiments/{experiment['id']}/runs").raise_for_status().json()
    return str(runs[0]["id"])


def _run(home: Path, run_id: str) -> dict[str, Any]:
    with _client(home) as client:
        found: dict[str, Any] = client.get(f"/runs/{run_id}").raise_for_status().json()
    return found


def _processes(home: Path) -> list[psutil.Process]:
    """Everything that works for this home now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and (
                str(home) in " ".join(process.cmdline()) or process.environ().get("INCIPIT_HOME") == str(home)
            ):
                found.append(process)
    return [process for process in found if process.pid != os.getpid() and not _is_test_process(process)]


def _is_test_process(process: psutil.Process) -> bool:
    return any(process.pid == parent.pid for parent in psutil.Process().parents()) or "pixeltable" in process.name()


@contextmanager
def _launched(home: Path) -> Any:
    """`incipit up` as a person starts it, and where its services are."""
    # A script that puts the suite in the background has SIGINT ignored, and what it starts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    launcher = subprocess.Popen(
        [*_UP, "--home", str(home)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:

        def is_up() -> StackState | None:
            assert launcher.poll() is None, launcher.stdout.read() if launcher.stdout else ""
            return running_stack(home)

        _await(is_up, "the start")
        state = read_state(home)
        assert state is not None
        yield launcher, state
    finally:
        launcher.kill()
        if launcher.stdout is not None:
            launcher.stdout.close()
        launcher.wait()


def test_ctrl_c_ends_everything_and_the_next_start_goes_on_to_a_checkpoint_that_opens(home: Path) -> None:
    settings = Settings(home=home)
    with _launched(home) as (launcher, state):
        run_id = _submit(home, num_steps=_NUM_STEPS, checkpoints={"every_steps": 100})
        _await(lambda: _run(home, run_id)["step"] >= 3, "training")
        services = {service.name: service.pid for service in state.services}
        assert set(services) == {"broker", "api", "worker", "control"}
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(_SECONDS) == 0
        assert "Everything has ended." in launcher.stdout.read()
    assert [process.cmdline() for process in _processes(home)] == []
    database = Database(settings.sql_url)
    run = run_row(database, run_id)
    assert (run.state, run.attempt) == ("queued", 0)
    with database.read() as session:
        saved = session.scalars(select(Checkpoint.step).where(Checkpoint.run_id == run_id)).all()
    assert run.last_step in saved, "nothing that was done is done again"

    with _launched(home) as (launcher, again):
        assert again.api_url == state.api_url, "an open page finds it again"
        _await(lambda: _run(home, run_id)["state"] == "succeeded", "the end of the run")
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(_SECONDS) == 0
    assert recorded_steps(database, run_id) == list(range(1, _NUM_STEPS + 1))
    with database.read() as session:
        newest = select(Checkpoint).where(Checkpoint.removed_at.is_(None)).order_by(Checkpoint.step.desc())
        checkpoint = session.scalars(newest).first()
    assert checkpoint is not None
    folder = settings.run_dir / run_id / "attempts" / str(checkpoint.fence) / checkpoint.path
    code = "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; p = sys.argv[1]; "
    code += "print(M.from_pretrained(p).num_parameters(), len(T.from_pretrained(p)))"
    opened = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert opened.stdout.split() == ["112000", "81"]
    database.close()


def test_a_service_that_dies_is_started_again_and_a_supervisor_stays_small(home: Path) -> None:
    with LocalStack(home, with_dashboard=False) as stack:
        state = read_state(home)
        assert state is not None
        pids = {service.name: service.pid for service in state.services}
        supervisors = [one for one in psutil.Process(pids["worker"]).children() if one not in _engine_servers(pids)]
        assert max(supervisor.memory_info().rss for supervisor in supervisors) < 112 * 1024**2
        for name in ("broker", "api", "control"):
            os.kill(pids[name], signal.SIGKILL)
        _await(lambda: _pids(home).keys() == pids.keys() and not {*_pids(home).values()} & {pids["api"]}, "the restart")
        _await(lambda: _is_ready(stack.api_url), "an API that answers with a broker")
        run_id = _submit(home)
        _await(lambda: _run(home, run_id)["state"] == "succeeded", "a run after all that")
        with _client(home) as client:
            workers = client.get("/workers").json()
        assert {worker["pid"] for worker in workers} == {pids["worker"]}


def test_a_service_that_cannot_be_started_again_is_said_and_the_others_live_until_the_stop(home: Path) -> None:
    def control() -> int | None:
        for process in _processes(home):  # this test process may have another stack
            with suppress(psutil.Error):  # it may end just now
                if "worker.control" in process.cmdline():
                    return process.pid
        return None

    with LocalStack(home, with_dashboard=False) as stack:
        first = control()
        assert first is not None
        (home / f".stack-{os.getpid()}.json").mkdir()  # as on a full disk, the state cannot be written
        os.kill(first, signal.SIGKILL)
        _await(lambda: control() not in (None, first), "the restart")
        second = control()
        assert second is not None
        time.sleep(2)
        assert started_at(second) is not None, "what was restarted lives on"
        assert stack.failure is None
        (home / "logs" / "control.log").unlink()
        (home / "logs" / "control.log").mkdir()
        os.kill(second, signal.SIGKILL)
        _await(lambda: stack.failure, "a sentence")
        assert "The control ended and cannot be started again: " in str(stack.failure)
        assert _is_ready(stack.api_url)
        api = _pids(home)["api"]
    assert started_at(api) is None


@pytest.mark.skipif(not EngineServer.is_possible(), reason="needs Linux")
def test_engines_are_forks_of_a_server_that_is_replaced_when_it_is_killed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INCIPIT_RETRY_SECONDS", "1")
    with LocalStack(home, with_dashboard=False):
        (first,) = _engine_servers(_pids(home))
        run_id = _submit(home, num_steps=_NUM_STEPS, checkpoints={"every_steps": 50})
        _await(lambda: _run(home, run_id)["step"] >= 60, "training")
        (engine,) = first.children()
        assert {"train", str(home)} <= {*engine.cmdline(), engine.environ()["INCIPIT_HOME"]}
        first.kill()
        _await(lambda: started_at(engine.pid) is None, "the end of its engine", 1)
        _await(lambda: _engine_servers(_pids(home)) not in ([], [first]), "another server")
        _await(lambda: _run(home, run_id)["state"] == "succeeded", "the end of the run")
        (second,) = _engine_servers(_pids(home))
    assert started_at(second.pid) is None
    database = Database(Settings(home=home).sql_url)
    with database.read() as session:
        exit_codes = session.scalars(select(Attempt.exit_code).order_by(Attempt.fence)).all()
    assert exit_codes == [-signal.SIGKILL, 0]
    database.close()
    assert (home / "logs" / "engine-server.log").read_text() == ""


@pytest.mark.full
def test_without_the_server_engines_are_started_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCIPIT_ENGINE_SERVER", "false")
    with LocalStack(home, with_dashboard=False):
        run_id = _submit(home)
        _await(lambda: _run(home, run_id)["state"] == "succeeded", "the end of the run")
        assert _engine_servers(_pids(home)) == []


def _engine_servers(pids: dict[str, int]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pids["worker"]).children():
        with suppress(psutil.Error):
            if "engine.fork_server" in child.cmdline():
                found.append(child)
    return found


def _pids(home: Path) -> dict[str, int]:
    state = read_state(home)
    assert state is not None
    return {service.name: service.pid for service in state.services if started_at(service.pid) is not None}


def _is_ready(api_url: str) -> bool:
    with suppress(httpx.HTTPError):
        answer = httpx.get(f"{api_url}/readyz", timeout=5, trust_env=False)
        return answer.is_success and answer.json()["broker"] == "up"
    return False


@pytest.mark.full
def test_a_run_whose_messages_all_went_to_other_workers_is_taken_after_a_heartbeat(home: Path) -> None:
    """As by a worker that is drained or too small, which reads from the same queue."""
    with _launched(home) as (_, state):
        _await(lambda: _present(home), "a heartbeat")
        broker = redis.Redis(unix_socket_path=urlsplit(state.broker_url).path)
        is_over = threading.Event()
        stolen: list[bytes] = []

        def steal() -> None:
            while not is_over.is_set():
                message = broker.brpop(["runs"], timeout=1)
                stolen.extend([message[1]] if message else [])

        thieves = [threading.Thread(target=steal) for _ in range(3)]
        for thief in thieves:
            thief.start()
        time.sleep(2)  # they stand in line before the worker does for at least the next message
        run_ids = [_submit(home, student={"path": "/nowhere"}) for _ in range(4)]
        _await(lambda: {_run(home, run_id)["state"] for run_id in run_ids} == {"failed"}, "four claims", 40)
        is_over.set()
        for thief in thieves:
            thief.join()
        assert stolen, "the messages were for everybody"


def _present(home: Path) -> bool:
    with _client(home) as client:
        return bool(client.get("/workers").raise_for_status().json())
