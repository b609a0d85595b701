"""How much memory there is for what this machine runs: the machine's own, or less where a container's limit is lower."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MachineMemory:
    total_bytes: int
    """What can be used at most."""
    available_bytes: int
    """What could be taken now without swapping; caches of files count as free."""


def machine_memory(groups: Path = _GROUPS, mount: Path = _MOUNT) -> MachineMemory:
    """Of this process: the machine's memory and every limit above the process, whichever leaves least."""
    machine = psutil.virtual_memory()
    total, available = machine.total, machine.available
    for limit, used in _limits(groups, mount):
        total, available = min(total, limit), min(available, max(0, limit - used))
    return MachineMemory(total, available)


def _limits(groups: Path, mount: Path) -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of each control group above this process that has a limit; Linux only, both versions."""
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, names = mount, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = mount / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # Inside a container the path may be the host's, which is not there; the mount itself is then the container's group.
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            found = _limit(folder, *names)
            if found is not None:
                yield found
            if folder == root:
                break


def _limit(folder: Path, limit: str, used: str, cached: str) -> tuple[int, int] | None:
    """None where there is no limit; version 1 has a number that no machine reaches in its place."""
    try:
        most, now = (folder / limit).read_text().strip(), int((folder / used).read_text())
        stat = dict(line.split(" ", 1) for line in (folder / "memory.stat").read_text().splitlines())
        return None if most == "max" else (int(most), now - int(stat.get(cached, 0)))
    except (OSError, ValueError):
        return None
