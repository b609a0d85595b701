"""Whatever ends a stack from outside, runs at work write a checkpoint first; only Ctrl-C can be meant twice."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from backend.database import Database
from backend.records import Checkpoint
from backend.settings import Settings
from backend.tables import Run
from incipit.stack.local_token import local_token
from incipit.stack.state import running_stack
from tests.worker.runs import short_spec

_SECONDS = 120.0
# Says what reaches it: at work, then while it ends, which takes a second.
_ENDING = """
import signal, sys, time
from incipit.stack.interrupts import interrupted_by_signals, let_the_end_be_orderly
if "as in a terminal" in sys.argv:  # a suite in the background, or under nohup, hands on what it ignores
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
with interrupted_by_signals():
    try:
        print("at work", flush=True)
        time.sleep(30)
    except KeyboardInterrupt:
        let_the_end_be_orderly()
        try:
            print("ending", flush=True)
            time.sleep(1)
            print("ended in order")
        except KeyboardInterrupt:
            print("ended at once")
"""
# What a shell does for a command in a terminal of its own.
_IN_TERMINAL = (
    "import fcntl, signal, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    "from incipit.cli import app; app()"
)


def _said(*numbers: signal.Signals, launcher: tuple[str, ...] = ()) -> list[str]:
    """What a process says that gets these signals: the first at work, the others while it ends."""
    command = [*launcher, sys.executable, "-c", _ENDING, *([] if launcher else ["as in a terminal"])]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip()]
        for number in numbers:
            process.send_signal(number)
            if len(said) == 1 and not (launcher and number == signal.SIGHUP):
                said.append(process.stdout.readline().strip())
        said.extend(process.stdout.read().splitlines())
    assert process.returncode == 0
    return said


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_terminal_that_closes_twice_lets_the_end_be_orderly(first: signal.Signals) -> None:
    further = (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP)
    assert _said(first, *further) == ["at work", "ending", "ended in order"]


def test_ctrl_c_again_ends_at_once() -> None:
    assert _said(signal.SIGHUP, signal.SIGINT) == ["at work", "ending", "ended at once"]
    assert _said(signal.SIGINT, signal.SIGINT) == ["at work", "ending", "ended at once"]


def test_a_closing_terminal_is_nothing_to_what_nohup_started() -> None:
    said = _said(signal.SIGHUP, signal.SIGTERM, launcher=("nohup",))
    assert said == ["at work", "ending", "ended in order"]


def _await(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not happen within {_SECONDS} s"
        time.sleep(0.1)


def _submit(home: Path) -> None:
    state = running_stack(home)
    assert state is not None
    base = short_spec(num_steps=150, checkpoints={"every_steps": 100}).model_dump(mode="json")
    credentials = {"Authorization": f"Bearer {local_token(home)}"}
    url = f"{state.api_url}/api/v1/experiments"
    httpx.post(url, json={"name": "q", "base": base}, headers=credentials, trust_env=False).raise_for_status()


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", [["up", "--no-dashboard"], ["demo"]], ids=["up", "demo"])
def test_runs_write_a_checkpoint_when_the_terminal_closes(home: Path, command: list[str]) -> None:
    screen, terminal = os.openpty()
    launcher = subprocess.Popen(
        [sys.executable, "-c", _IN_TERMINAL, *command, "--home", str(home)],
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    os.set_blocking(screen, False)

    def reads() -> None:
        with suppress(BlockingIOError):  # a screen that nobody reads fills up
            os.read(screen, 65536)

    def at_work() -> list[Run]:
        reads()
        with database.read() as session:
            runs = select(Run).where(Run.state == "running", Run.last_step >= 3)
            return list(session.scalars(runs))

    database = Database(Settings(home=home).sql_url)
    try:
        _await(lambda: reads() or running_stack(home), "the start")
        if command[0] == "up":
            _submit(home)
        _await(at_work, "training")
        os.close(screen)  # the kernel says SIGHUP, as the shell does
        launcher.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        launcher.send_signal(signal.SIGHUP)
        launcher.wait(_SECONDS)
        with database.read() as session:
            runs = session.scalars(select(Run).where(Run.last_step > 0)).all()
            saved = {(row.run_id, row.step) for row in session.execute(select(Checkpoint.run_id, Checkpoint.step))}
        assert runs
        assert {run.state for run in runs} <= {"queued", "succeeded"}
        assert {(run.id, run.last_step) for run in runs} <= saved, "nothing that was done is done again"
    finally:
        launcher.kill()
        launcher.wait()
        database.close()
