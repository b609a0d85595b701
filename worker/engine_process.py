"""The engine as a process: started with its log and its stdin, told things, ended for certain."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from backend.redaction import Redaction
from worker.tether import tethered

_MAX_TAIL_BYTES = 4096
_NOT_FOR_ENGINES = ("INCIPIT_DATABASE_URL", "INCIPIT_BROKER_URL", "INCIPIT_LOCAL_TOKEN")


class EngineProcess:
    """A running `python -m engine …`. It dies with this process, and reads the end of its stdin as that too."""

    def __init__(self, arguments: list[str], *, log_path: Path, folder: Path, environment: Mapping[str, str]) -> None:
        """Start it in `folder`. Call it from the main thread: the engine dies when the thread that started it ends."""
        self.log_path = log_path
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                tethered(engine_command(arguments), signal.SIGKILL),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=engine_environment(environment),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """How it ended (negative: by that signal), None while it runs."""
        return self._process.poll()

    def tell(self, command: Mapping[str, object]) -> None:
        """Send one command; an engine that is about to end does not read it any more."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return

    def terminate(self) -> None:
        """Ask the process to stop with a checkpoint, by signal."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process and all it has started, at once, and take note of its end."""
        # PermissionError is what macOS says of a group of zombies.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # of a command that was not sent any more
                self._process.stdin.close()

    def log_tail(self, num_lines: int = 15) -> str:
        """The last lines that it wrote to stdout and stderr, without secrets: they go into the run's history."""
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - _MAX_TAIL_BYTES))
            tail = "\n".join(log.read().decode(errors="replace").strip().splitlines()[-num_lines:])
        return Redaction(os.environ)(tail)


def engine_command(arguments: list[str]) -> list[str]:
    """The command line of an engine process; -P keeps the folder it runs in out of the import path."""
    return [sys.executable, "-P", "-m", "engine", *arguments]


def engine_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without the services' secrets."""
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_ENGINES}
    return {**inherited, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", **extra}
