"""What a tracker is told about a run, whichever tracker it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Parameter = str | int | float | bool
Outcome = Literal["finished", "failed", "stopped"]


@dataclass(frozen=True)
class TrackedRun:
    """A run as it was asked for."""

    id: str
    """16 hexadecimal digits that follow from the run's first event: the same at each replay, wherever the folder lies."""
    name: str
    started: float
    """Unix seconds."""
    parameters: dict[str, Parameter]
    """The spec's fields, `optimizer.learning_rate`; a list is its JSON."""


@dataclass(frozen=True)
class Metric:
    """A figure; `name` has the parts `train/loss`."""

    name: str
    value: float
    unit: str
    """nats, tokens, FLOPs, bytes, seconds; 1 of shares and plain numbers."""


@dataclass(frozen=True)
class Measurement:
    """Figures that belong to one step."""

    step: int
    time: float
    """Unix seconds of the event."""
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class Note:
    """A sentence about a run. An alarm is also a tag of the run; a link says where a file lies; a fact is what it is."""

    kind: Literal["alarm", "link", "fact"]
    name: str
    text: str
    step: int
    time: float


@dataclass(frozen=True)
class Resumed:
    """A new attempt goes on behind `step`; what was told of later steps no longer holds."""

    step: int
    time: float


class Sink(Protocol):
    """One tracker. It imports the tracker's library in `begin`, and a run that it has seen before is not there twice."""

    def begin(self, run: TrackedRun) -> None:
        """Open the run. ModuleNotFoundError without the library."""

    def measure(self, measurement: Measurement) -> None:
        """Write figures."""

    def note(self, note: Note | Resumed) -> None:
        """Write a sentence."""

    def end(self, outcome: Outcome | None) -> None:
        """Write all that is left; None says that the run goes on."""
