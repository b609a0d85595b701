"""How often the kernel has killed a process because memory ran out: with it, the cause of a SIGKILL has a name."""

from pathlib import Path

_SYSTEM = Path("/proc/vmstat")


def num_memory_kills(counters: Path = _SYSTEM) -> int:
    """Such kills on this machine since it started, those by the limit of a container included; 0 where nobody counts."""
    try:
        lines = counters.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
