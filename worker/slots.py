"""Slots: how many runs this machine works on at once, and on which GPU each."""

import fcntl
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MAX_CPU_SLOTS = 2  # more tiny engines at once only slow each other down


@dataclass(frozen=True)
class Slot:
    """Room for one run."""

    index: int
    gpu: str | None
    """Index or UUID for CUDA_VISIBLE_DEVICES; None without a GPU."""

    @property
    def name(self) -> str:
        return f"gpu{self.gpu}" if self.gpu is not None else f"cpu{self.index}"

    def environment(self) -> dict[str, str]:
        """What the engine in this slot gets in its environment beside what the worker has."""
        cores = os.cpu_count() or 1
        threads = "1" if self.gpu is None else str(min(cores, 4))
        return {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
            # Threads that spin while they wait take the cores from the other slot.
            "OMP_WAIT_POLICY": "PASSIVE",
            **({"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu is not None else {}),
        }


def slots_of_this_machine(configured: int | None) -> list[Slot]:
    """The slots: as many as configured, else one per GPU, else one per core up to 2."""
    gpus = visible_gpus()
    count = configured or len(gpus) or min(_MAX_CPU_SLOTS, os.cpu_count() or 1)
    return [Slot(index, gpus[index % len(gpus)] if gpus else None) for index in range(count)]


def visible_gpus() -> list[str]:
    """Indices or UUIDs of the NVIDIA GPUs, asked of the driver's own tool: this process must never load CUDA."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu.strip() for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (subprocess.SubprocessError, OSError):
        return []
    return asked.stdout.split()


@contextmanager
def free_slot(slots: list[Slot], folder: Path) -> Iterator[Slot | None]:
    """A slot that no other process of this machine uses until the block ends; None when all are taken.

    The lock is the kernel's: it falls when its process dies.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for slot in slots:
        with (folder / f"{socket.gethostname()}-{slot.index}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield slot
            return
    yield None
