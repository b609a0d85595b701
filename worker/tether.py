"""`python tether.py PARENT SIGNAL COMMAND…` becomes COMMAND, which gets SIGNAL as soon as the process PARENT is gone.

Run as a file with `-I -S`: it must start in milliseconds and import nothing of ours. The kernel keeps the promise
(PR_SET_PDEATHSIG), so it holds after kill -9 of the parent too. Other systems than Linux have no such promise; there
the command merely runs.
"""

import os
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def tethered(command: list[str], death_signal: int) -> list[str]:
    """`command`, wrapped so that it gets `death_signal` when the calling thread of this process ends."""
    return [sys.executable, "-I", "-S", str(Path(__file__)), str(os.getpid()), str(int(death_signal)), *command]


def _become(parent: int, death_signal: int, command: list[str]) -> None:
    if sys.platform == "linux":
        import ctypes  # only here: it doubles the start-up time of what needs `tethered` alone

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal)
    # The parent may have died before the line above; then nobody would send the signal any more.
    if os.getppid() != parent:
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    _become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
