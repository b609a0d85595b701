"""Ports on the loopback interface."""

import fcntl
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from incipit.stack.errors import StackError

LOOPBACK = "127.0.0.1"


@contextmanager
def choosing_ports(folder: Path) -> Iterator[None]:
    """Held from the choice of ports until servers listen there: two stacks that start at once would choose the same."""
    with (folder / "ports.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose old connections are still in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def chosen_port(asked: int | None, option: str, preferred: list[int]) -> int:
    """The asked port, else the first free one of `preferred`, else any free one.

    Raises StackError when the asked port is taken or cannot be opened.
    """
    if asked is not None:
        if not is_free(asked):
            raise StackError(
                f"Port {asked} on {LOOPBACK} is in use or not allowed; stop the program that holds it, choose another "
                f"with {option}, or leave {option} out to get a free one."
            )
        return asked
    for port in preferred:
        if is_free(port):
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
