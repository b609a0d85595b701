"""The processes of a run that torchrun has started, as one of them sees them.

What they tell each other besides tensors is JSON in a tensor: nothing that comes over the network is unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from engine.errors import RunError, first_line
from engine.events import FailureKind
from engine.findings import Finding
from engine.parallelism_spec import OneProcess
from engine.spec import RunSpec

T = TypeVar("T")

_BUCKET_BYTES = 64 * 1024**2  # of gradients that are summed in one call: enough for the network's full rate
_PATIENCE = timedelta(minutes=30)  # ranks wait for each other while one of them samples longer or writes a checkpoint
_CAUSE = "incipit/failure"
_CAUSE_PATIENCE = timedelta(
    seconds=3
)  # a rank that fails says why before it ends, and its peers learn of its end at once


@dataclass(frozen=True)
class Ranks:
    """This process's place among all; the default is alone, where nothing here talks to anybody."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Its place among those of this machine."""
    local_size: int = 1
    store: Store | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes events, traces and checkpoints."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of what all of them have: every `size`-th."""
        return list(items[self.rank :: self.size])

    def joined(self, parts: Sequence[Sequence[T]]) -> list[T]:
        """What was shared out, in its order, from the parts by rank."""
        total = sum(map(len, parts))
        return [parts[index % self.size][index // self.size] for index in range(total)]

    def gathered(self, document: Any) -> list[Any]:
        """The JSON values of all ranks, by rank. RunError("rank_lost") when one is gone, as of all calls below."""
        if self.size == 1:
            return [document]
        told = torch.frombuffer(bytearray(json.dumps(document).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        with _named_loss():
            dist.all_gather(sizes, torch.tensor([len(told)]))
            room = max(int(size) for size in sizes)
            padded = torch.nn.functional.pad(told, (0, room - len(told)))
            heard = [torch.empty(room, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(heard, padded)
        return [json.loads(text[: int(size)].numpy().tobytes()) for text, size in zip(heard, sizes, strict=True)]

    def agreed(self, document: Any) -> Any:
        """What rank 0 has given, on every rank: a JSON value."""
        if self.size == 1:
            return document
        return self.gathered(document if self.is_first else None)[0]

    def first_does(self, act: Callable[[], object]) -> Any:
        """What `act` returns on rank 0, on every rank: a JSON value. What it raises ends the run, and every rank."""
        return self.agreed(act() if self.is_first else None)

    def most(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        numbers: list[int] = self.gathered(number)
        return max(numbers)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their sums over all ranks; a parameter that has one on no rank keeps none."""
        if self.size == 1:
            return
        listed = list(parameters)
        has_one = self.gathered([parameter.grad is not None for parameter in listed])
        summed = []
        for parameter, flags in zip(listed, zip(*has_one, strict=True), strict=True):
            if any(flags):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                summed.append(parameter.grad)
        with _named_loss():
            for bucket in _buckets(summed):
                flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
                dist.all_reduce(flat)
                parts = flat.split_with_sizes([gradient.numel() for gradient in bucket])
                for gradient, part in zip(bucket, parts, strict=True):
                    gradient.copy_(part.view_as(gradient))

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Give all ranks the values that these tensors have on rank 0."""
        if self.size > 1:
            with _named_loss():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), 0)

    def tell_failure(self, failure: RunError) -> None:
        """Leave word why this rank ends, for those that will only see that it is gone. The first word counts."""
        if self.store is None or failure.failure == "rank_lost":
            return
        said = {"rank": self.rank, "failure": failure.failure, "message": failure.message}
        with suppress(RuntimeError):  # whoever kept the store is gone, too
            self.store.compare_set(_CAUSE, "", json.dumps(said))

    def cause_of(self, failure: RunError) -> RunError:
        """The failure of another rank behind one that only says that it is gone, if that one left word."""
        if self.store is None or failure.failure != "rank_lost":
            return failure
        try:
            self.store.wait([_CAUSE], _CAUSE_PATIENCE)
            said = json.loads(self.store.get(_CAUSE))
        except (RuntimeError, ValueError):
            return failure
        kind: FailureKind = said["failure"]
        return RunError(kind, f"Process {said['rank']} of {self.size}: {said['message']}")

    def close(self) -> None:
        """Take leave of the others."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


ALONE = Ranks()


def is_launched() -> bool:
    """Whether torchrun has started this process, alone or among others."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def joined_ranks(spec: RunSpec) -> Ranks:
    """The ranks that torchrun has started this process among, joined; ALONE for one process, whatever the spec says.

    Raises RunError("bad_spec") when the spec has no use for several, RunError("rank_lost") when they do not come together.
    """
    size = int(os.environ["WORLD_SIZE"]) if is_launched() else 1
    if size == 1:
        return ALONE
    if isinstance(spec.parallelism, OneProcess):
        raise _refused(
            "parallelism",
            f"torchrun has started {size} processes but parallelism.kind is 'one_process'; set it to data_parallel or "
            "fully_sharded, or start one.",
        )
    if spec.prompts_per_step < size:
        raise _refused(
            "prompts_per_step",
            f"prompts_per_step is {spec.prompts_per_step} but {size} processes share them; raise it to {size} or start fewer.",
        )
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    is_cuda = spec.device != "cpu" and torch.cuda.is_available()
    if is_cuda:
        if local_size > torch.cuda.device_count():
            raise _refused(
                "parallelism",
                f"torchrun has started {local_size} processes on this machine, which has {torch.cuda.device_count()} usable "
                "GPUs; start one for each GPU.",
            )
        torch.cuda.set_device(local_rank)
    with _named_loss():
        store, rank, size = next(rendezvous("env://", timeout=_PATIENCE))
        store.set_timeout(_PATIENCE)
        # JSON goes between the CPUs, gradients and shards where they lie.
        backend = "cpu:gloo,cuda:nccl" if is_cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    return Ranks(rank, size, local_rank, local_size, PrefixStore("incipit", store))


def speaks_of_ranks(error: BaseException) -> bool:
    """Whether an error says that another process of the run does not answer any more."""
    if isinstance(error, dist.DistError):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and any(
        word in words for word in ("gloo", "NCCL", "Connection closed by peer")
    )


def lost(error: BaseException) -> RunError:
    """The failure of a rank that has waited for another in vain."""
    return RunError(
        "rank_lost",
        f"Another process of this run is gone or cannot be reached ({first_line(error)}); what it said last is in the log. "
        "Resume from the newest checkpoint.",
    )


@contextmanager
def _named_loss() -> Iterator[None]:
    """Within it, an error of the connection to other ranks becomes RunError("rank_lost")."""
    try:
        yield
    except RuntimeError as error:
        raise lost(error) from error


def _refused(field: str, message: str) -> RunError:
    return RunError("bad_spec", message, [Finding(field=field, message=message)])


def _buckets(tensors: list[Tensor]) -> Iterable[list[Tensor]]:
    """Neighbours of one dtype, together at most `_BUCKET_BYTES` unless it is a single one."""
    bucket: list[Tensor] = []
    room = 0
    for tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        if bucket and (num_bytes > room or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        if not bucket:
            room = _BUCKET_BYTES
        bucket.append(tensor)
        room -= num_bytes
    if bucket:
        yield bucket
