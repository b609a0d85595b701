"""What a running local stack tells others: `stack.json` in its home, valid while the launcher that wrote it lives."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ValidationError

from incipit.stack.errors import StackError
from worker.identity import is_dead


class ServiceState(BaseModel):
    """A process of the stack."""

    name: str
    pid: int
    started_at: float
    """Unix seconds; a process with that pid but another start is not ours."""


class StackState(BaseModel):
    """Where the services of a stack are."""

    is_ready: bool
    """Whether all services have answered and the stack is not about to end."""
    launcher: str
    """The launcher's name as a process, see worker.identity."""
    api_url: str
    dashboard_url: str | None
    broker_url: str
    services: list[ServiceState] = []


def read_state(home: Path) -> StackState | None:
    """The last state written to a home, whether or not that stack still runs."""
    try:
        return StackState.model_validate_json((home / "stack.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def write_state(home: Path, state: StackState) -> None:
    """Replace the state file."""
    draft = home / f".stack-{os.getpid()}.json"
    draft.write_text(state.model_dump_json(indent=1) + "\n")
    draft.replace(home / "stack.json")


def running_stack(home: Path) -> StackState | None:
    """The stack that is up and ready in this home; None when there is none."""
    state = read_state(home)
    return state if state is not None and state.is_ready and not is_dead(state.launcher) else None


@contextmanager
def only_stack(home: Path) -> Iterator[None]:
    """Hold the home for one launcher. Raises StackError with the address of the one that runs already."""
    lock = _lock(home)
    if lock is None:
        state = read_state(home)
        address = (state.dashboard_url or state.api_url) if state else "not known yet"
        raise StackError(
            f"Incipit already runs in {home}, its address is {address}; use that one, stop it, or choose another "
            "folder with --home."
        )
    with lock:
        yield


def _lock(home: Path) -> BinaryIO | None:
    """The lock of a home, which falls when the file is closed, as it is when the process ends; None if it is taken."""
    lock = (home / "stack.lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock
