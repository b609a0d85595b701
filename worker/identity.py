"""Which process this is, in one name that stays true: with it others on the same machine can tell that it is dead."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

HOST = socket.gethostname()[:64]
"""Asked once for a process and those it forks: a laptop's name changes with its network, but not what is locked or queued by it."""


@dataclass(frozen=True)
class ProcessIdentity:
    """A process of a machine since its last start; a reused pid or a restarted machine has another identity."""

    host: str
    boot_id: str
    """First 8 characters of the kernel's boot id; empty where there is none."""
    pid_namespace: str
    """Number of the namespace in which the pid counts; empty where there are none."""
    pid: int
    started: int
    """Clock ticks from the machine's start to the process's; Unix seconds where the kernel does not tell."""

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity | None":
        """The identity of a living process of this machine."""
        started = _start_of(pid)
        return None if started is None else cls(HOST, boot_id(), pid_namespace(), pid, started)

    @classmethod
    def own(cls) -> "ProcessIdentity":
        """The identity of this process."""
        identity = cls.of(os.getpid())
        assert identity is not None
        return identity

    @property
    def name(self) -> str:
        """At most 128 characters; `is_dead` reads it."""
        return f"{self.host}:{self.boot_id}:{self.pid_namespace}:{self.pid}:{self.started}"


def is_dead(name: str) -> bool:
    """Whether the process of that name is known to be gone; False where nobody here can see it.

    That is one of another machine, or of another container: those with the host's network have its name, but not its processes.
    """
    try:
        host, boot, namespace, pid, started = name.rsplit(":", 4)
        named = ProcessIdentity(host, boot, namespace, int(pid), int(started))
    except ValueError:
        return False
    if named.host != HOST or named.pid_namespace != pid_namespace():
        return False
    return named.boot_id != boot_id() or _start_of(named.pid) != named.started


def boot_id() -> str:
    """Changes when the machine restarts."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text()[:8] if path.exists() else ""


def pid_namespace() -> str:
    """Of this process; containers on one machine have different ones."""
    path = Path("/proc/self/ns/pid")
    return path.readlink().name.strip("pid:[]") if path.is_symlink() else ""


def _start_of(pid: int) -> int | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{pid}/stat")
        # Field 22; the name in field 2 may hold spaces and brackets. psutil's time shifts when the clock is set.
        return int(stat.read_text().rpartition(")")[2].split()[19]) if stat.exists() else int(process.create_time())
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None
