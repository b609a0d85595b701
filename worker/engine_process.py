"""The engine as a process: started with its log and its stdin, told things, ended for certain."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from backend.redaction import Redaction
from worker.engine_server import EngineServer, ForkedEngine
from worker.tether import tethered

_MAX_TAIL_BYTES = 4096
_GONE_SECONDS = 10.0  # from SIGKILL to the end, when a GPU's memory has to be freed
_SECRETS = ("INCIPIT_DATABASE_URL", "INCIPIT_BROKER_URL", "INCIPIT_LOCAL_TOKEN")
# Set by Celery as it starts; an engine is none of its pool.
_MARKS_OF_CELERY = ("CELERY_", "celery_", "_MP_FORK_", "FORKED_BY_")
# Of a job that the worker itself was started in: an engine would look for the other processes of that.
_MARKS_OF_TORCHRUN = frozenset({"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})


class EngineProcess:
    """A running `python -m engine …`. It dies with this process, and reads the end of its stdin as that too."""

    def __init__(
        self,
        arguments: list[str],
        *,
        log_path: Path,
        folder: Path,
        environment: Mapping[str, str],
        stdout: int | None = None,
        server: EngineServer | None = None,
        while_waiting: Callable[[], None] = lambda: None,
        num_processes: int = 1,
        python: Path | None = None,
    ) -> None:
        """Start it in `folder`. Call it from the main thread: the engine dies when the thread that started it ends.

        `log_path` gets stderr, and stdout too unless that has a descriptor of its own. Where there is a `server`, the
        process is a fork of it if that makes no difference; while it is not ready, `while_waiting` is called every second,
        and what that raises is raised. Several processes are torchrun's (engine/launch.py), which this one then is. `python` is
        another environment's.
        """
        self.log_path = log_path
        its_stdin, stdin = os.pipe()
        self._stdin = os.fdopen(stdin, "wb", buffering=0)
        try:
            with log_path.open("ab") as log:
                standard = (its_stdin, log.fileno() if stdout is None else stdout, log.fileno())
                wanted = engine_environment(environment)
                forked = None
                if server is not None and num_processes == 1 and python is None:
                    forked = server.engine(
                        arguments, standard=standard, folder=folder, environment=wanted, while_waiting=while_waiting
                    )
                command = (
                    engine_command(arguments, python)
                    if num_processes == 1
                    else launch_command(num_processes, arguments)
                )
                self._process = forked or _started(command, standard, folder, wanted)
        except BaseException:
            self._stdin.close()
            raise
        finally:
            os.close(its_stdin)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def started(self) -> float | None:
        """When it was started, by the clock of the machine, which tells it from a later process of that pid; None when it is gone."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).create_time()
        return None

    def exit_code(self) -> int | None:
        """How it ended (negative: by that signal), None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int:
        """How it ended. Raises subprocess.TimeoutExpired."""
        return self._process.wait(seconds)

    def tell(self, command: Mapping[str, object]) -> None:
        """Send one command; an engine that is about to end does not read it any more."""
        with suppress(BrokenPipeError):
            self._stdin.write(json.dumps(command).encode() + b"\n")

    def terminate(self) -> None:
        """Ask the process to stop with a checkpoint, by signal."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process and all it has started, at once, and take note of its end."""
        if isinstance(self._process, ForkedEngine):
            self._process.kill()
        else:
            # torchrun puts each of its processes into a session of its own. They also die with it, but not in their first second.
            descendants = _descendants(self._process.pid)
            # PermissionError is what macOS says of a group of zombies.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for one in descendants:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(descendants, timeout=_GONE_SECONDS)
        self._stdin.close()

    def log_tail(self, num_lines: int = 15) -> str:
        """The last lines that it wrote to stdout and stderr, without secrets: they go into the run's history."""
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - _MAX_TAIL_BYTES))
            tail = "\n".join(log.read().decode(errors="replace").strip().splitlines()[-num_lines:])
        return Redaction(os.environ)(tail)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _started(
    command: list[str], standard: tuple[int, int, int], folder: Path, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    stdin, stdout, stderr = standard
    return subprocess.Popen(
        tethered(command, signal.SIGKILL),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=folder,
        env=environment,
        start_new_session=True,
    )


def engine_command(arguments: list[str], python: Path | None = None) -> list[str]:
    """The command line of an engine process; -P keeps the folder it runs in out of the import path."""
    return [str(python or sys.executable), "-P", "-m", "engine", *arguments]


def launch_command(num_processes: int, arguments: list[str]) -> list[str]:
    """The command line of an engine of several processes."""
    return [sys.executable, "-P", "-m", "engine.launch", str(num_processes), *arguments]


def engine_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without the services' secrets, Celery's own variables and torchrun's."""
    left_out = (*_SECRETS, *_MARKS_OF_CELERY)
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(left_out) and name not in _MARKS_OF_TORCHRUN
    }
    return {**inherited, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", **extra}
