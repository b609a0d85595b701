"""Servers of engine processes for tests: of the engine itself, or of lines of Python where torch makes no difference."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from worker.engine_process import engine_environment
from worker.engine_server import EngineServer, ForkedEngine
from worker.slots import Slot

_SERVE = """
import sys
from engine.fork_server import ForkServer
exec(ForkServer(sys.argv[1], lambda: exec(sys.argv[2])).next_engine()[0])
"""
_SECONDS = 10.0


class OverlookingServer(EngineServer):
    """The server, which overlooks pytest's own variables: one of them is another in each test."""

    def engine(
        self,
        arguments: list[str],
        *,
        standard: tuple[int, int, int],
        folder: Path,
        environment: Mapping[str, str],
        while_waiting: Callable[[], None],
    ) -> ForkedEngine | None:
        theirs = _without(environment, "PYTEST_")
        return super().engine(
            arguments, standard=standard, folder=folder, environment=theirs, while_waiting=while_waiting
        )


class LineServer(OverlookingServer):
    """Its engines are lines of Python, and so is `prepare`, which it does before it forks the first."""

    prepare = "pass"

    def _command(self) -> list[str]:
        return [sys.executable, "-P", "-c", _SERVE, self.name, self.prepare + " " * 600]


def server_of(kind: type[EngineServer], folder: Path, patience_seconds: float = 60.0) -> EngineServer:
    """A server as a worker has it, not yet started."""
    inherited = _without(engine_environment(Slot(0, None).environment()), "PYTEST_", "INCIPIT_")
    whole = inherited | {"INCIPIT_HOME": str(folder)}
    return kind(whole, folder=folder, log_path=folder / "server.log", patience_seconds=patience_seconds)


def kept(server: EngineServer) -> EngineServer:
    """Started, and its socket is there."""
    server.keep()
    deadline = time.monotonic() + _SECONDS
    while f"@{server.name}" not in Path("/proc/net/unix").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return server


def _without(environment: Mapping[str, str], *prefixes: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(prefixes)}
