"""What `incipit train` shows on a terminal: a bar with an ETA, and a line for each evaluation and checkpoint."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from engine.events import (
    CheckpointSaved,
    Evaluated,
    Failed,
    PhaseChanged,
    Ready,
    RunEvent,
    StepDone,
    TailMeasured,
    Warned,
)
from engine.spec import RunSpec


class TerminalProgress:
    """Follows the events of one attempt."""

    def __init__(self, spec: RunSpec, *, enabled: bool) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=not enabled,
        )
        self._task = self._progress.add_task(escape(spec.name), total=spec.num_steps)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, event: RunEvent) -> None:
        """Draw what an event says."""
        say = self._progress.console.print if not self._progress.disable else _say_nothing
        match event:
            case PhaseChanged():
                self._progress.update(self._task, description=escape(f"{event.phase} {event.detail}".strip()))
            case Ready():
                millions = (
                    f"student {event.student_parameters / 1e6:.1f} M, teacher {event.teacher_parameters / 1e6:.1f} M"
                )
                trained = event.trained_parameters
                adapter = "" if trained in (None, event.student_parameters) else f", {trained:,} of them trained"
                say(f"loaded in {event.seconds:.1f} s: {millions} parameters{adapter}")
            case StepDone():
                self._progress.update(self._task, completed=event.step, description=_step_words(event))
            case Evaluated():
                say(_evaluation_line(event))
            case TailMeasured():
                say(_tail_line(event))
            case CheckpointSaved():
                say(f"step {event.step}: saved {escape(event.path)} ({event.num_bytes / 1e6:.1f} MB)")
            case Warned():
                say(f"[yellow]{escape(f'{event.message} {event.advice}'.strip())}[/yellow]")
            case Failed():
                say(f"[red]{escape(event.message)}[/red]")
            case _:
                pass


def _step_words(event: StepDone) -> str:
    cross_entropy, loss = event.metrics.get("cross_entropy"), event.metrics["loss"]
    if cross_entropy is not None:
        return f"warm-up, cross-entropy {cross_entropy:.4f} nats"
    return f"{'no loss' if loss is None else f'loss {loss:.4f} nats'}, horizon {event.horizon}"


def _evaluation_line(event: Evaluated) -> str:
    parts = [f"step {event.step}: {event.subject} on {event.num_prompts} {event.split} prompts"]
    for name, label in (
        ("accuracy", "accuracy"),
        ("exact", "exact"),
        ("eos_rate", "EOS"),
        ("reverse_kl", "reverse KL"),
    ):
        value = event.metrics.get(name)
        if value is not None:
            parts.append(f"{label} {value:.3f}")
    return ", ".join(parts) + (" (best so far)" if event.is_best and event.split == "dev" else "")


def _tail_line(event: TailMeasured) -> str:
    parts = [f"step {event.step}: tail of {event.num_rollouts} whole texts"]
    for name, label in (
        ("reverse_kl_beyond", "reverse KL beyond"),
        ("eos_rate", "EOS"),
        ("stop_probability", "P(EOS) at the teacher's end"),
        ("repetition", "repetition"),
    ):
        value, teacher = event.metrics.get(name), event.teacher_metrics.get(name)
        if value is not None:
            parts.append(f"{label} {value:.3f}" + (f" (teacher {teacher:.3f})" if teacher is not None else ""))
    return ", ".join(parts)


def _say_nothing(text: str) -> None:
    """Used when there is no terminal: the events file has it all."""
