"""Over how many processes a run is spread, and what each of them holds. It imports without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engine.frozen import Frozen

NumProcesses = Annotated[int, Field(ge=2, le=64)]


class OneProcess(Frozen):
    """One process on one device."""

    kind: Literal["one_process"] = "one_process"


class DataParallel(Frozen):
    """Every process holds both models whole, and takes its share of each step's prompts."""

    kind: Literal["data_parallel"] = "data_parallel"
    num_processes: NumProcesses = 2
    """Processes that a worker starts, each on a GPU of its own; a torchrun that is started by hand may start another number."""


class FullySharded(Frozen):
    """Every process holds a part of both models and of the optimizer's state (FSDP2), and takes its share of each step's prompts.

    A block's weights come together while it is run; all weights of one model do while that model samples or is evaluated.
    """

    kind: Literal["fully_sharded"] = "fully_sharded"
    num_processes: NumProcesses = 2
    """Processes that a worker starts, each on a GPU of its own; a torchrun that is started by hand may start another number."""


Parallelism = Annotated[OneProcess | DataParallel | FullySharded, Field(discriminator="kind")]
