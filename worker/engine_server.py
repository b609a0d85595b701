"""The worker's side of engine/fork_server.py: keeps the server, and has it start engines, which are then like any process.

One server is shared by all processes of a worker: three of them would hold the same memory three times.
"""

import json
import logging
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from worker.tether import tethered

FREE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "INCIPIT_HOME")
"""What may differ between server and engine: read where a GPU or a file is first used. All else may be read by an import."""
_ROOM_BYTES = 600  # for the command lines of engines, which `ps` shows in place of the server's
_WAITING_SECONDS = 1.0
_PATIENCE_SECONDS = 120.0  # the import takes 5 s, on a loaded machine with a slow disk ten times that
_REPORT_SECONDS = 2.0  # from the end of a process to what a server says of it that is not frozen
_MAX_PACKET_BYTES = 4096

_log = logging.getLogger(__name__)


class EngineServer:
    """Make it before the worker's processes are forked: the main one calls `keep`, the others ask it for engines."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        folder: Path,
        log_path: Path,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        """`environment` is all that an engine may see, `folder` where it works; `log_path` gets what the server itself says.

        A server that does not answer for `patience_seconds` is done without.
        """
        self.name = f"incipit-{secrets.token_hex(16)}"
        self._environment = dict(environment)
        self._folder = folder
        self._log_path = log_path
        self._patience_seconds = patience_seconds
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def is_possible() -> bool:
        """Whether this system forks safely and names processes by descriptors."""
        return sys.platform == "linux" and hasattr(os, "pidfd_open")

    @property
    def pid(self) -> int | None:
        """Of the server; None before `keep`."""
        return None if self._process is None else self._process.pid

    def keep(self) -> None:
        """Start the server, or again when it was killed. It dies with the thread that calls this first."""
        if self._process is not None:
            ended = self._process.poll()
            if ended is None or ended >= 0:  # one that ended with an error would do so again
                return
            _log.warning("The server of engine processes was ended by signal %s; another one is started.", -ended)
        self._log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                tethered(self._command(), signal.SIGKILL),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                env=self._environment,
            )

    def end(self) -> None:
        """End the server, and with it all its engines."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _command(self) -> list[str]:
        return [sys.executable, "-P", "-m", "engine.fork_server", self.name, " " * _ROOM_BYTES]

    def _differing(self, environment: Mapping[str, str]) -> list[str]:
        """Names of variables that an import may have read otherwise than this environment has them."""
        names = self._environment.keys() | environment.keys()
        return sorted(
            name for name in names - {*FREE_VARIABLES} if self._environment.get(name) != environment.get(name)
        )

    def engine(
        self,
        arguments: list[str],
        *,
        standard: tuple[int, int, int],
        folder: Path,
        environment: Mapping[str, str],
        while_waiting: Callable[[], None],
    ) -> "ForkedEngine | None":
        """A new engine process, or None where only one that is started by itself is right.

        `standard` are stdin, stdout and stderr. The server may first have to import the engine; `while_waiting` is called
        every second, and what it raises ends the waiting.
        """
        if differing := self._differing(environment):
            _log.warning("An engine is started by itself, since its environment differs: %s.", ", ".join(differing))
            return None
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(f"\0{self.name}")
            _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if user != os.getuid():
                raise ConnectionRefusedError("somebody else has taken its name")
            asked = {
                "arguments": arguments,
                "folder": str(folder),
                "environment": {name: environment.get(name) for name in FREE_VARIABLES},
            }
            socket.send_fds(connection, [json.dumps(asked).encode()], standard)
            deadline = time.monotonic() + self._patience_seconds
            while not _is_readable(connection.fileno(), _WAITING_SECONDS):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"it has not answered for {self._patience_seconds:g} s")
                while_waiting()
            packet, descriptors, _, _ = socket.recv_fds(connection, _MAX_PACKET_BYTES, 1)
            answer: dict[str, Any] = json.loads(packet) if packet else {"refused": "it has ended"}
            if "pid" in answer:
                return ForkedEngine(answer["pid"], descriptors[0], connection)
            why = answer["refused"]
        except OSError as error:
            why = str(error)
        except BaseException:
            connection.close()
            raise
        connection.close()
        _log.warning("The server of engine processes started none (%s).", why)
        return None


class ForkedEngine:
    """An engine process of the server, with what subprocess.Popen has of its own; any thread may use it.

    Its pid stays its own until `kill` has returned.
    """

    def __init__(self, pid: int, descriptor: int, connection: socket.socket) -> None:
        self.pid = pid
        self._descriptor = descriptor
        self._connection = connection
        self._exit_code: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """How it ended (negative: by that signal), None while it runs."""
        return self._ended_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """How it ended. Raises subprocess.TimeoutExpired."""
        exit_code = self._ended_within(timeout)
        if exit_code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(f"engine {self.pid}", timeout)
        return exit_code

    def send_signal(self, number: int) -> None:
        """Send a signal to the process itself."""
        with self._lock, suppress(ProcessLookupError):
            if self._connection.fileno() >= 0:
                signal.pidfd_send_signal(self._descriptor, number)

    def kill(self) -> None:
        """End the process and its group; when it returns, the process is gone, and its pid may be another's."""
        self.send_signal(signal.SIGKILL)
        with self._lock:
            if self._connection.fileno() < 0:
                return
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            _is_readable(self._descriptor, None)
        if self._ended_within(_REPORT_SECONDS) is None:
            self._exit_code = -signal.SIGKILL
        with self._lock:
            with suppress(OSError):  # the server is gone
                self._connection.shutdown(socket.SHUT_WR)
                _is_readable(self._connection.fileno(), _REPORT_SECONDS)  # its end: the pid is free
            self._connection.close()
            os.close(self._descriptor)

    def _ended_within(self, timeout: float | None) -> int | None:
        with self._lock:
            if self._exit_code is None and _is_readable(self._connection.fileno(), timeout):
                try:
                    packet = self._connection.recv(_MAX_PACKET_BYTES)
                except ConnectionResetError:
                    packet = b""
                if packet:
                    self._exit_code = json.loads(packet)["exit_code"]
                else:  # the server is gone, and the kernel kills its engines
                    _is_readable(self._descriptor, None)
                    self._exit_code = -signal.SIGKILL
            return self._exit_code


def _is_readable(descriptor: int, seconds: float | None) -> bool:
    """Whether there is something to read within the time, or an end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if seconds is None else seconds * 1000))
