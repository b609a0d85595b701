"""`python -m tests.in_memory COMMAND …` runs a command whose temporary files lie in memory where there is room for them.

On a slow disk an empty PostgreSQL database takes half a second to make, in memory a twelfth of that. Nothing here loses its
power, so that no test needs a disk; faults and soak keep to it, because people's databases do.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
NEEDED_BYTES = 6 << 30
"""Twice what the tests of `make test` have written when they end (2.8 GB)."""


def has_room(folder: Path, num_bytes: int) -> bool:
    """Whether programs can be run from `folder`, and so much be written there while as much memory again stays free."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return False
    system = os.statvfs(folder)
    if system.f_flag & os.ST_NOEXEC or system.f_bavail * system.f_frsize < num_bytes:
        return False
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024 >= 2 * num_bytes


def main() -> int:
    """Run the command; its exit status. TMPDIR, where somebody set it, stays."""
    command = sys.argv[1:]
    if "TMPDIR" in os.environ or not has_room(MEMORY, NEEDED_BYTES):
        os.execvp(command[0], command)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the folder goes, too
    with tempfile.TemporaryDirectory(prefix="incipit-", dir=MEMORY) as folder:
        os.chmod(folder, 0o755)  # PostgreSQL has a user of its own
        return subprocess.run(command, env=os.environ | {"TMPDIR": folder}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
