"""What an engine process uses, sampled beside it: a GPU's own tool that hangs must not hold up its supervisor."""

import functools
import logging
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from backend.database import Database
from backend.queries.claims import Claim
from backend.queries.resources import add_sample
from backend.resources import ResourceFigures, WorkerCapabilities
from engine.events import EVENT_VERSION
from engine.machine_memory import machine_memory
from engine.spec import SPEC_VERSION
from worker.slots import Slot

_SECONDS = 10.0
_FIRST_SECONDS = 2.0  # of the first samples, so that a run of half a minute has some
_NUM_FIRST = 8
_GPU_SECONDS = 5.0
_MEBIBYTE = 2**20

_log = logging.getLogger(__name__)


class ResourceWatch:
    """Samples the engine of one attempt in a thread of its own; `keep` stores what it has found, from the supervisor's."""

    def __init__(self, database: Database, claim: Claim, slot: Slot, folder: Path) -> None:
        """`folder` lies on the disk whose free space is told."""
        self.database = database
        self.claim = claim
        self.slot = slot
        self.folder = folder
        self._found: queue.SimpleQueue[ResourceFigures] = queue.SimpleQueue()
        self._is_over = threading.Event()

    def begin(self, pid: int) -> None:
        """Watch an engine that has just been started."""
        threading.Thread(target=self._watch, args=(pid,), name="resources", daemon=True).start()

    def keep(self) -> None:
        """Store the newest sample if there is one. Raises LeaseLost, and what the database raises."""
        newest = None
        while not self._found.empty():  # older ones could not be stored in time
            newest = self._found.get()
        if newest is not None:
            with self.database.write() as session:
                add_sample(session, self.claim.run_id, self.claim.fence, newest)

    def end(self) -> None:
        """Stop sampling; the thread ends by itself."""
        self._is_over.set()

    def _watch(self, pid: int) -> None:
        number, before, at = 0, 0.0, time.monotonic()
        try:
            before, _ = usage_of(pid)
            while not self._is_over.wait(_FIRST_SECONDS if number < _NUM_FIRST else _SECONDS):
                seconds, rss = usage_of(pid)
                now = time.monotonic()
                self._found.put(
                    ResourceFigures(
                        cpu_percent=max(0.0, 100 * (seconds - before) / (now - at)),
                        rss_bytes=rss,
                        memory_available_bytes=machine_memory().available_bytes,
                        disk_free_bytes=shutil.disk_usage(self.folder).free,
                        **(gpu_figures(self.slot.gpu) if self.slot.gpu is not None else {}),
                    )
                )
                number, before, at = number + 1, seconds, now
        except psutil.NoSuchProcess:
            return
        except (psutil.Error, OSError) as error:
            _log.warning("What run %s uses is not sampled any more: %s", self.claim.run_id, error)


def capabilities(slot: Slot, labels: Sequence[str]) -> WorkerCapabilities:
    """What a run in this slot has at hand, as the worker's heartbeat tells and its claims ask for."""
    memory = machine_memory()
    return WorkerCapabilities(
        device="cpu" if slot.gpu is None else "cuda",
        cores=os.cpu_count() or 1,
        memory_total_bytes=memory.total_bytes,
        memory_available_bytes=memory.available_bytes,
        gpu_memory_total_bytes=None if slot.gpu is None else gpu_memory_total_bytes(slot.gpu),
        num_gpus=0 if slot.gpu is None else slot.max_processes,
        labels=list(labels),
        versions=_versions(),
        spec_version=SPEC_VERSION,
        event_version=EVENT_VERSION,
    )


@functools.cache
def _versions() -> dict[str, str]:
    """As installed, without importing them; an engine says what it has imported."""
    found = {}
    for name in ("incipit", "torch"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@functools.cache
def gpu_memory_total_bytes(gpu: str) -> int | None:
    """None where the driver does not tell. Asked once: it stays as it is, and a driver's tool that hangs would hold up every heartbeat."""
    total = gpu_figures(gpu).get("gpu_memory_total_bytes")
    return None if total is None else int(total)


def usage_of(pid: int) -> tuple[float, int]:
    """CPU seconds so far and resident bytes of a process and its living children. Raises NoSuchProcess."""
    process = psutil.Process(pid)
    seconds, rss = _own_usage(process)
    for child in process.children(recursive=True):
        try:
            more_seconds, more_rss = _own_usage(child)
        except psutil.NoSuchProcess:
            continue
        seconds, rss = seconds + more_seconds, rss + more_rss
    return seconds, rss


def _own_usage(process: psutil.Process) -> tuple[float, int]:
    with process.oneshot():
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss


def gpu_figures(gpu: str) -> dict[str, float]:
    """gpu_percent, gpu_memory_bytes and gpu_memory_total_bytes of a GPU (index or UUID), as far as the driver's tool says."""
    names = ("gpu_percent", "gpu_memory_bytes", "gpu_memory_total_bytes")
    query = "--query-gpu=utilization.gpu,memory.used,memory.total"
    command = ["nvidia-smi", f"--id={gpu}", query, "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_GPU_SECONDS, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return {}
    return parsed_figures(names, said)


def parsed_figures(names: tuple[str, ...], said: str) -> dict[str, float]:
    """The figures of one line such as `37, 1024, 81559`; what is not a number, such as `[N/A]`, is left out."""
    found: dict[str, float] = {}
    for name, text in zip(names, said.strip().split(","), strict=False):
        if text.strip().isdecimal():
            found[name] = int(text) * (_MEBIBYTE if name.endswith("bytes") else 1)
    return found
