"""The API as a process of its own, on a free port, for tests that lose it or look at it from outside."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import httpx

from tests.access import TOKEN
from tests.forks import FORKS

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
        said = os.devnull if log is None else log.name
        self._process = FORKS.Process(target=_serve, args=(os.environ | self._environment, said), daemon=True)
        self._process.start()
        deadline = time.monotonic() + _SECONDS
        while not self._answers():
            assert time.monotonic() < deadline, f"the API did not answer within {_SECONDS} s"
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Its process id, while it runs."""
        assert self._process.pid is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL, as an out-of-memory killer does."""
        self._process.kill()
        self._process.join(10)

    def _answers(self) -> bool:
        assert self._process.exitcode is None, "the API ended at its start"
        try:
            return _ASKING.get(f"{self.url}/livez").is_success
        except httpx.TransportError:
            return False


def _serve(environment: dict[str, str], said: str) -> None:
    """What `python -m backend > said 2>&1` does."""
    from backend.__main__ import main

    os.environ.clear()
    os.environ.update(environment)
    for descriptor in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    main()
