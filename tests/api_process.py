"""`python -m backend` as a process of its own, on a free port, for tests that lose it or look at it from outside."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import httpx

from tests.access import TOKEN

_SECONDS = 60.0
# One for all: each new client reads certificates for 40 ms, and whoever waits asks often.
_ASKING = httpx.Client(trust_env=False)


@contextmanager
def served(database_url: str) -> Iterator["ApiProcess"]:
    """An API for the block, whose local token is that of the tests."""
    process = ApiProcess(database_url, INCIPIT_LOCAL_TOKEN=TOKEN)
    process.start()
    yield process
    process.kill()


class ApiProcess:
    """An API that can be started, killed and started again at the same address."""

    def __init__(self, database_url: str, **environment: str) -> None:
        """`environment` is added to this process's own; nobody is at the broker's address."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = int(listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = {
            "INCIPIT_PORT": str(self.port),
            "INCIPIT_DATABASE_URL": database_url,
            "INCIPIT_BROKER_URL": "redis://127.0.0.1:1/0",
            **environment,
        }

    def start(self, log: IO[str] | None = None) -> None:
        """Start it, and return when it answers; what it says goes into `log`."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "backend"],
            env=os.environ | self._environment,
            stdout=subprocess.DEVNULL if log is None else log,
            stderr=subprocess.DEVNULL if log is None else log,
        )
        deadline = time.monotonic() + _SECONDS
        while not self._answers():
            assert time.monotonic() < deadline, f"the API did not answer within {_SECONDS} s"
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Its process id, while it runs."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, as an out-of-memory killer does."""
        self._process.kill()
        self._process.wait(10)

    def _answers(self) -> bool:
        assert self._process.poll() is None, "the API ended at its start"
        try:
            return _ASKING.get(f"{self.url}/livez").is_success
        except httpx.TransportError:
            return False
