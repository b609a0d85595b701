"""One process of the local stack: in its own session, tied to the launcher's life, logged, ended for certain."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import ValidationError

from incipit.stack.errors import StackError
from worker.settings import WorkerSettings, sentences_of
from worker.tether import tethered

_MAX_LOG_BYTES = 20 * 1024**2
_KILL_SECONDS = 5.0  # a killed process is gone within milliseconds, unless it hangs in the kernel


class Service:
    """A command that can be started, watched and stopped."""

    def __init__(
        self,
        name: str,
        command: list[str],
        *,
        environment: Mapping[str, str],
        log_path: Path,
        stop_seconds: float = 10.0,
        death_signal: signal.Signals = signal.SIGKILL,
    ) -> None:
        """`stop_seconds` is the time between SIGTERM and SIGKILL; `death_signal` comes when the launcher dies."""
        self.name = name
        self.command = command
        self.environment = environment
        self.log_path = log_path
        self.stop_seconds = stop_seconds
        self.death_signal = death_signal
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the command. Call it from a thread that outlives the service: its end counts as the launcher's."""
        if self.log_path.exists() and self.log_path.stat().st_size > _MAX_LOG_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                tethered(self.command, self.death_signal),
                env=dict(self.environment),
                cwd=self.log_path.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the launcher alone, and the group can be killed as one
            )

    def exit_code(self) -> int | None:
        """How it ended (negative: by that signal); None while it runs or before it was started."""
        return self._process.poll() if self._process else None

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the process itself; its children are its own business."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self, *, seconds: float | None = None) -> bool:
        """End it: SIGTERM, after `seconds` (default `stop_seconds`) SIGKILL to its group. Whether it ended alone."""
        if self._process is None:
            return True
        self.ask_to_stop()
        try:
            self._process.wait(self.stop_seconds if seconds is None else seconds)
            ended_alone = True
        except subprocess.TimeoutExpired:
            ended_alone = False
        self.kill()
        return ended_alone

    def kill(self) -> None:
        """SIGKILL to the whole group, also when its leader is gone already; returns when none of it lives."""
        if self._process is None:
            return
        members = _members(self._process.pid)
        _kill_group(self._process.pid)
        self._process.wait(_KILL_SECONDS)
        # Those behind the leader are nobody's children here: nothing but looking tells when the kernel is done with them.
        deadline = time.monotonic() + _KILL_SECONDS
        while any(started_at(pid) is not None for pid in members) and time.monotonic() < deadline:
            time.sleep(0.005)

    def last_log_line(self) -> str:
        """The last line that it wrote, for a message; empty when there is none."""
        try:
            lines = self.log_path.read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
        except FileNotFoundError:
            return ""
        return _sentence_of(lines[-1].strip()) if lines else ""


def _sentence_of(line: str) -> str:
    """What a line of a log says: the text of a line in JSON with the fault it tells of, or the line itself."""
    try:
        fields = json.loads(line)
        return " ".join([fields["message"], *fields.get("exception", "").splitlines()[-1:]])
    except (ValueError, TypeError, KeyError):
        return line


def worker_stop_seconds() -> float:
    """How long a worker may take to end; StackError when its settings contradict each other, before anything starts."""
    try:
        return WorkerSettings().longest_stop_seconds
    except ValidationError as error:
        raise StackError(" ".join(sentences_of(error))) from None


def started_at(pid: int) -> float | None:
    """Unix time at which a living process was started: with the pid it names the process for good."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def end_orphan(pid: int, start_time: float, seconds: float) -> None:
    """End a process that an earlier launcher left behind, unless the pid has gone to another process since."""
    found = started_at(pid)
    # psutil computes the time from the boot time, which moves a little when the clock is set.
    if found is None or abs(found - start_time) > 2:
        return
    os.kill(pid, signal.SIGTERM)
    try:
        psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess:
        return
    except psutil.TimeoutExpired:
        _kill_group(pid)


def _members(leader: int) -> list[int]:
    """Processes of a group beside its leader."""
    found = []
    for pid in psutil.pids():
        with suppress(ProcessLookupError, PermissionError):
            if pid != leader and os.getpgid(pid) == leader:
                found.append(pid)
    return found


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # PermissionError: macOS says so of a group of zombies
        return
