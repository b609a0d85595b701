"""What a run asks of a worker, and whether a worker has it: the same rule that the claim asks of the database, in words.

backend/queries/queue.py is that rule in SQL; a test compares the two over random runs and workers.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints, field_validator

from backend.resources import WorkerCapabilities
from backend.whole_numbers import whole
from engine.frozen import Frozen
from engine.spec import RunSpec

MAX_LABELS = 16
VLLM_LABEL = "vllm"
"""Of workers whose engines may have vLLM inside."""
_MAX_LISTED = 5  # names in a sentence
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
"""A word such as `a100` or `lab-2`."""


def _each_once(labels: list[str]) -> list[str]:
    double = next((label for label in labels if labels.count(label) > 1), None)
    if double is not None:
        raise ValueError(f"labels has {double!r} {labels.count(double)} times; name each once")
    return sorted(labels)


class Needs(Frozen):
    """What people ask of the worker of a run; its device and its memory follow from its spec."""

    labels: Annotated[list[Label], Field(max_length=MAX_LABELS)] = []
    """Labels that the worker must have, all of them, as INCIPIT_WORKER_LABELS gives them to it."""
    memory_bytes: Annotated[int, Field(ge=0, le=2**53), BeforeValidator(whole)] | None = None
    """Memory that the worker must have for the run, of its GPU where it uses one; empty is what the estimate says, 0 is any."""

    _labels_stand_once = field_validator("labels")(_each_once)


class RunNeeds(Frozen):
    """What the worker of a run must have."""

    device: Literal["auto", "cpu", "cuda"]
    num_gpus: int
    """GPUs that it takes where it runs on GPUs."""
    num_processes: int
    """Processes that share its work; where it runs on a CPU, each needs a core."""
    cpu_memory_bytes: int | None
    """Where it runs on a CPU; None where that is not known, so that any worker does."""
    gpu_memory_bytes: int | None
    """The same of each GPU, where it runs on one."""
    labels: list[str]
    spec_version: int
    event_version: int
    """Newest version of what its attempts have told so far; 0 before the first."""

    @classmethod
    def stated(cls, spec: RunSpec) -> "RunNeeds":
        """What the spec alone says, without a look at its models."""
        return cls(
            device=spec.device,
            num_gpus=0 if spec.device == "cpu" else spec.num_processes,
            num_processes=spec.num_processes,
            cpu_memory_bytes=None,
            gpu_memory_bytes=None,
            labels=[VLLM_LABEL] if spec.needs_vllm else [],
            spec_version=spec.spec_version,
            event_version=0,
        )

    def memory_on(self, device: str | None) -> int | None:
        """Bytes that it takes from the memory of a worker with that device; see `room_of`."""
        return self.gpu_memory_bytes if self.device != "cpu" and device == "cuda" else self.cpu_memory_bytes

    def room_of(self, worker: WorkerCapabilities) -> int | None:
        """Bytes of the memory from which it would take its own; None where the worker does not tell."""
        is_on_gpu = self.device != "cpu" and worker.device == "cuda"
        return worker.gpu_memory_total_bytes if is_on_gpu else worker.memory_total_bytes


class Candidate(Frozen):
    """A connected worker, as far as it matters to a run that waits."""

    place: str
    """Host and slot."""
    capabilities: WorkerCapabilities
    is_draining: bool


def why_it_waits(needs: RunNeeds, workers: Sequence[Candidate]) -> str | None:
    """Why none of the connected workers can take the run, in one sentence; None when one can, busy or not."""
    if not workers:
        return "No worker is connected; start one: `incipit up` on this machine, `python -m worker` on others."
    left = list(workers)
    for fits, sentence in _CONDITIONS:
        fitting = [one for one in left if fits(needs, one.capabilities)]
        if not fitting:
            return sentence(needs, left)
        left = fitting
    if all(one.is_draining for one in left):
        return (
            f"{_listed([one.place for one in left])} could take the run but {_is(left)} being drained; start another worker, "
            f"or let one take runs again: `incipit workers resume {left[0].place.split(',')[0]}`."
        )
    return None


def has_version(needs: RunNeeds, worker: WorkerCapabilities) -> bool:
    """Whether the worker knows the run's spec, and what earlier attempts have told; one that does not say is taken to."""
    knows_spec = worker.spec_version is None or needs.spec_version <= worker.spec_version
    return knows_spec and (worker.event_version is None or needs.event_version <= worker.event_version)


def has_gpus(needs: RunNeeds, worker: WorkerCapabilities) -> bool:
    """Whether the worker has the device, and GPUs enough where the run uses them."""
    if worker.device != "cuda":
        return needs.device != "cuda"
    return needs.device == "cpu" or needs.num_gpus <= worker.num_gpus


def has_cores(needs: RunNeeds, worker: WorkerCapabilities) -> bool:
    """Whether the worker has a core for each process where the run works on its CPU; what it does not tell is taken to be enough."""
    is_on_cpu = worker.device != "cuda" or needs.device == "cpu"
    return not is_on_cpu or worker.cores is None or needs.num_processes <= worker.cores


def has_labels(needs: RunNeeds, worker: WorkerCapabilities) -> bool:
    """Whether the worker has all labels."""
    return set(needs.labels) <= set(worker.labels)


def has_memory(needs: RunNeeds, worker: WorkerCapabilities) -> bool:
    """Whether the run fits what the worker has in all; what is not known is taken to fit."""
    needed, room = needs.memory_on(worker.device), needs.room_of(worker)
    return needed is None or room is None or needed <= room


def _too_old(needs: RunNeeds, workers: Sequence[Candidate]) -> str:
    newest = max(workers, key=lambda one: (one.capabilities.spec_version or 0, one.capabilities.event_version or 0))
    known = newest.capabilities
    return (
        f"The run needs a worker that knows spec version {needs.spec_version} and event version {needs.event_version}, but the "
        f"newest connected one ({newest.place}, Incipit {known.versions.get('incipit', 'unknown')}) knows {known.spec_version} and "
        f"{known.event_version}; install the API's version of Incipit on the workers."
    )


def _without_gpus(needs: RunNeeds, workers: Sequence[Candidate]) -> str:
    most = max((one.capabilities.num_gpus for one in workers), default=0)
    has = "none of the connected workers has a GPU" if most == 0 else f"the connected workers have {most} at most"
    return (
        f"The run needs {needs.num_gpus} GPU{'s' if needs.num_gpus != 1 else ''} (device {needs.device}), but {has}; start a "
        "worker on a machine that has, or clone the run with the device auto."
    )


def _too_few_cores(needs: RunNeeds, workers: Sequence[Candidate]) -> str:
    most = max((one.capabilities.cores or 0 for one in workers), default=0)
    return (
        f"The run has {needs.num_processes} processes (parallelism.num_processes), but the connected workers that could take it have "
        f"{most} cores at most and no GPUs for it; start a worker on a larger machine, or clone the run with fewer."
    )


def _without_labels(needs: RunNeeds, workers: Sequence[Candidate]) -> str:
    known = sorted({label for one in workers for label in one.capabilities.labels})
    have = f"their labels are {_listed(known)}" if known else "they have no labels"
    if VLLM_LABEL in needs.labels and VLLM_LABEL not in known:
        return (
            "The run samples with vLLM inside its engine (rollouts.kind vllm_colocated), but no connected worker that could take it "
            f"has the label vllm ({have}); start one with INCIPIT_VLLM_PYTHON, or clone the run with rollouts.kind engine."
        )
    return (
        f"The run needs a worker with {_listed(needs.labels)}, but no connected worker that could take it has "
        f"{'them all' if len(needs.labels) > 1 else 'that'} ({have}); start one with INCIPIT_WORKER_LABELS="
        f"{','.join(needs.labels)}, or clone the run with other labels."
    )


def _too_small(needs: RunNeeds, workers: Sequence[Candidate]) -> str:
    # What it lacks may differ: a run takes other memory from a GPU than from a machine.
    def share(one: Candidate) -> float:
        return (needs.room_of(one.capabilities) or 0) / (needs.memory_on(one.capabilities.device) or 1)

    best = max(workers, key=share)
    needed, room = needs.memory_on(best.capabilities.device) or 0, needs.room_of(best.capabilities) or 0
    return (
        f"The run needs at least {needed / 1e9:.2f} GB of memory, but the roomiest connected worker that could take it "
        f"({best.place}) has {room / 1e9:.2f} GB; start a worker on a larger machine, or clone the run with less at once "
        "(prompts_per_step, a LoRA adapter, a smaller teacher) or with another amount for its worker."
    )


_Fits = Callable[[RunNeeds, WorkerCapabilities], bool]
_Sentence = Callable[[RunNeeds, Sequence[Candidate]], str]
_CONDITIONS: tuple[tuple[_Fits, _Sentence], ...] = (
    (has_version, _too_old),
    (has_gpus, _without_gpus),
    (has_cores, _too_few_cores),
    (has_labels, _without_labels),
    (has_memory, _too_small),
)
"""In the order in which a person would ask; each sentence is of the workers that meet those before it."""


def can_take(needs: RunNeeds, worker: WorkerCapabilities) -> bool:
    """Whether the worker has all that the run needs."""
    return all(fits(needs, worker) for fits, _ in _CONDITIONS)


def _listed(words: Sequence[str]) -> str:
    shown = [*words[:_MAX_LISTED], *([f"{len(words) - _MAX_LISTED} more"] if len(words) > _MAX_LISTED else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _is(workers: Sequence[Candidate]) -> str:
    return "is" if len(workers) == 1 else "are"
