"""From events of a run to what a tracker is told: figures with units, alarms, links. Secrets are taken out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping

from backend.redaction import Redaction
from engine.events import (
    CheckpointSaved,
    Evaluated,
    Failed,
    Finished,
    Ready,
    RunEvent,
    Started,
    StepDone,
    Stopped,
    TailMeasured,
    TracesWritten,
    Warned,
)
from engine.flops import FlopLedger
from incipit.tracking.record import Measurement, Metric, Note, Outcome, Parameter, Resumed

_NATS = ("loss", "divergence", "termination_guard", "entropy", "logprob_gap", "kl")
_KL_PARTS = ("reverse_kl_inside", "reverse_kl_before", "reverse_kl_beyond", "forward_kl_on_teacher_texts")


class EventAdapter:
    """What each event of one run says; it remembers the newest step, for events that name none."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._redact = Redaction(environment)
        self._step = 0

    def parameters(self, spec: Mapping[str, object]) -> dict[str, Parameter]:
        """The fields of a spec, flat and without secrets; fields that are None are left out."""
        return dict(self._flat(spec, ""))

    def _flat(self, document: Mapping[str, object], prefix: str) -> Iterator[tuple[str, Parameter]]:
        for name, value in document.items():
            if isinstance(value, Mapping):
                yield from self._flat(value, f"{prefix}{name}.")
            elif isinstance(value, bool | int | float):
                yield prefix + name, value
            elif isinstance(value, str):
                yield prefix + name, self._redact(value)
            elif value is not None:
                yield prefix + name, self._redact(json.dumps(value))

    def told(self, event: RunEvent) -> Iterator[Measurement | Note | Resumed]:
        """What a tracker is told of an event; nothing of most phases."""
        match event:
            case Started():
                if event.resumed_from_step:
                    yield Resumed(event.resumed_from_step, event.time)
                self._step = event.resumed_from_step
                versions = ", ".join(f"{name} {version}" for name, version in event.versions.items())
                text = f"attempt {event.attempt} on {event.device}, {event.precision}; {versions}"
                yield self._note("fact", f"attempt-{event.attempt}", text, event)
            case Ready():
                text = f"student {event.student_parameters}, teacher {event.teacher_parameters} weights"
                yield self._note("fact", "models", text, event)
                for name, source in event.sources.items():
                    yield self._note("link", f"source-{name}", source, event)
            case StepDone():
                self._step = event.step
                yield Measurement(event.step, event.time, tuple(_step_metrics(event)))
            case Evaluated():
                part = f"evaluation/{event.subject}/{event.split}"
                figures = event.metrics | {"is_best": float(event.is_best), "seconds": event.seconds}
                yield Measurement(event.step, event.time, tuple(_named(part, figures)))
            case TailMeasured():
                figures = {f"teacher/{name}": value for name, value in event.teacher_metrics.items()}
                yield Measurement(event.step, event.time, tuple(_named("sentinel", event.metrics | figures)))
            case CheckpointSaved():
                text = f"{event.path}, {event.num_bytes} bytes, manifest sha256 {event.manifest_sha256}"
                yield self._note("link", f"checkpoint-{event.step}", text, event)
            case TracesWritten():
                yield self._note("link", f"traces-{event.step}", event.path, event)
            case Warned():
                yield self._note("alarm", event.code, f"{event.message} {event.advice}".strip(), event)
            case Failed():
                yield self._note("alarm", event.failure, event.message, event)
            case Finished():
                yield self._note("fact", "finished", f"{event.reason} {event.detail}".strip(), event)
            case _:
                pass

    def _note(self, kind: str, name: str, text: str, event: RunEvent) -> Note:
        step = getattr(event, "step", None)
        return Note(kind, name, self._redact(text), self._step if step is None else step, event.time)  # type: ignore[arg-type]


def outcome_of(event: RunEvent) -> Outcome | None:
    """How an attempt ended, if this event ends it."""
    match event:
        case Finished():
            return "finished"
        case Failed():
            return "failed"
        case Stopped():
            return "stopped"
        case _:
            return None


def _step_metrics(event: StepDone) -> Iterator[Metric]:
    yield from _named("train", event.metrics | {"horizon": event.horizon})
    yield from (Metric(f"seconds/{name}", value, "seconds") for name, value in event.seconds.items())
    yield from _flops("flops", event.flops)
    yield Metric("flops/training", event.flops.training, "FLOPs")
    yield from _flops("executed_flops", event.executed)
    yield Metric("executed_flops/total", event.executed_flops, "FLOPs")
    if event.peak_memory_bytes is not None:
        yield Metric("memory/peak", event.peak_memory_bytes, "bytes")


def _flops(part: str, ledger: FlopLedger) -> Iterator[Metric]:
    return (Metric(f"{part}/{phase}", value, "FLOPs") for phase, value in ledger.model_dump().items())


def _named(part: str, figures: Mapping[str, float | None]) -> Iterator[Metric]:
    """What does not exist is left out: no tracker tells None from 0."""
    for name, value in figures.items():
        if value is not None:
            yield Metric(f"{part}/{name}", value, unit_of(name))


def unit_of(name: str) -> str:
    """The unit of a figure of StepDone, Evaluated or TailMeasured, by its name."""
    name = name.rpartition("/")[2]
    if name == "seconds":
        return "seconds"
    if name.endswith("tokens") or name == "horizon":
        return "tokens"
    return "nats" if name.endswith(_NATS) or name in _KL_PARTS else "1"
