"""Slots: how many runs this machine works on at once, and on which GPUs each."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from worker.identity import HOST

_MAX_CPU_SLOTS = 2  # more tiny engines at once only slow each other down


@dataclass(frozen=True)
class Slot:
    """Room for one run."""

    index: int
    gpu: str | None
    """Index or UUID for CUDA_VISIBLE_DEVICES; None without a GPU. Of several, the one whose figures are told."""
    further_gpus: tuple[str, ...] = ()
    """The others, for the processes of a run that has several."""

    @property
    def max_processes(self) -> int:
        """Most processes of one run: each has a GPU of its own, or a core."""
        return 1 + len(self.further_gpus) if self.gpu is not None else os.cpu_count() or 1

    def too_small_for(self, num_processes: int, device: str) -> str | None:
        """Why a run of so many processes on that device of its spec cannot be worked on here, in one sentence; None when it can."""
        is_on_cpu = self.gpu is None or device == "cpu"
        num_cores = os.cpu_count() or 1
        if num_processes <= (num_cores if is_on_cpu else self.max_processes):
            return None
        asked = f"parallelism.num_processes is {num_processes} but"
        if is_on_cpu:
            without = " and no GPU" if self.gpu is None else ""
            return f"{asked} this worker's machine has {num_cores} cores{without}; lower it, or use a larger machine."
        return (
            f"{asked} a slot of this worker has {self.max_processes} of its GPUs; lower it, or start the worker with "
            f"INCIPIT_GPUS_PER_SLOT={num_processes} on a machine that has so many."
        )

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
            **({"CUDA_VISIBLE_DEVICES": ",".join((self.gpu, *self.further_gpus))} if self.gpu is not None else {}),
        }


def slots_of_this_machine(configured: int | None, gpus_per_slot: int = 1, chosen_gpus: str = "") -> list[Slot]:
    """The slots: as many as configured, else one for each `gpus_per_slot` GPUs, else one per core up to 2."""
    gpus = visible_gpus(chosen_gpus)
    # GPUs that are too few for a slot more stay idle; where they are too few for any, one slot has them all.
    starts = range(0, max(len(gpus) - gpus_per_slot, 0) + 1, gpus_per_slot) if gpus else []
    groups = [gpus[start : start + gpus_per_slot] for start in starts]
    count = configured or len(groups) or min(_MAX_CPU_SLOTS, os.cpu_count() or 1)
    if not groups:
        return [Slot(index, None) for index in range(count)]
    dealt = [groups[index % len(groups)] for index in range(count)]
    return [Slot(index, first, tuple(others)) for index, (first, *others) in enumerate(dealt)]


def visible_gpus(chosen: str = "") -> list[str]:
    """Indices or UUIDs of the NVIDIA GPUs: those that were chosen, or all.

    All are asked of the driver's own tool: this process must never load CUDA.
    """
    if chosen:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip()]
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
        with (folder / f"{HOST}-{slot.index}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield slot
            return
    yield None
