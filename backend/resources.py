"""What a run's attempts ran on and used, as the API tells of it."""

from datetime import datetime
from typing import Literal

from engine.frozen import Frozen


class ResourceFigures(Frozen):
    """What an engine process and its machine had in use at a moment; None is what is not measured there."""

    cpu_percent: float | None = None
    """Of the engine and its child processes since the sample before; 100 is one core."""
    rss_bytes: int | None = None
    """Resident memory of the engine and its child processes."""
    memory_available_bytes: int | None = None
    """What the machine could still give."""
    gpu_percent: float | None = None
    """Utilisation of the slot's GPU, by all that use it."""
    gpu_memory_bytes: int | None = None
    """Memory in use on the slot's GPU, by all that use it."""
    gpu_memory_total_bytes: int | None = None
    disk_free_bytes: int | None = None
    """On the disk of the run folders."""


class ResourceSample(ResourceFigures):
    """The figures of an attempt at a time."""

    time: datetime
    attempt: int


class WorkerCapabilities(Frozen):
    """What a run has at hand in a worker's slot; None is what the worker has not said or cannot measure."""

    device: Literal["cpu", "cuda"] | None = None
    """What `device: auto` is there."""
    cores: int | None = None
    memory_total_bytes: int | None = None
    """Of the machine, or the limit of the worker's container; all slots of a machine share it."""
    memory_available_bytes: int | None = None
    """What the machine could still give at the last heartbeat."""
    gpu_memory_total_bytes: int | None = None
    """Of the slot's GPU; other slots share it where there are more of them than GPUs."""
    num_gpus: int = 0
    """GPUs that a run in the slot may use."""
    labels: list[str] = []
    """As INCIPIT_WORKER_LABELS names them: a run may ask for some."""
    versions: dict[str, str] = {}
    """Of incipit and torch."""
    spec_version: int | None = None
    """Newest version of a spec that the worker can read."""
    event_version: int | None = None
    """The same of what engines tell."""


class AttemptPlace(Frozen):
    """Where an attempt ran."""

    attempt: int
    worker: str
    host: str
    pid: int | None
    """Of the engine process."""
    device: str | None
    """None until the engine has started."""
    precision: str | None
    versions: dict[str, str]
    """Of torch, transformers and Incipit."""
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    exit_code: int | None
    resumed_from_step: int


class RunResources(Frozen):
    """A run's attempts, newest first, and samples of what they used, oldest first."""

    attempts: list[AttemptPlace]
    samples: list[ResourceSample]
    """At most 720: from then on every second one is dropped, the newest apart."""
