"""Alarms: what recent signals say about a run that is going wrong. Pure functions; it imports without torch.

A spike is compared with a running mean of the same kind of step, a full-length evaluation with those of base student and
teacher. An alarm is raised once when its limit is reached, and again only after the value was well inside it for a while.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from engine.frozen import Frozen
from engine.health_readings import (
    OF_EVALUATION,
    REFERENCES,
    Metrics,
    Reading,
    entropy_collapse,
    gradient_spike,
    kl_spike,
)
from engine.health_spec import HealthSpec

_WEIGHT = 0.1  # of the newest value in a running mean: about the last ten steps count


class RunningMean(Frozen):
    """A mean in which older values fade; of the first values a plain mean."""

    count: int = 0
    value: float = 0.0

    def followed_by(self, value: float) -> RunningMean:
        """The mean after one more value."""
        weight = max(1 / (self.count + 1), _WEIGHT)
        return RunningMean(count=self.count + 1, value=self.value + weight * (value - self.value))


class HealthState(Frozen):
    """What the alarms remember. It is part of every checkpoint, so that a resumed run raises the same ones."""

    means: dict[str, RunningMean] = {}
    """By signal and kind of step: a full-length step has another loss than one that stops at a short horizon."""
    base: dict[str, float] = {}
    """Full-length figures of the untrained student on the dev prompts."""
    teacher: dict[str, float] = {}
    """The same of the teacher."""
    best_overlap: float | None = None
    """Largest overlap mass measured so far."""
    episodes: dict[str, int] = {}
    """Alarms whose episode has not ended, by code: the last step at which the value was not well inside its limit."""


class StepSignals(Frozen):
    """What a finished step tells the alarms; None where a step supervised nothing."""

    step: int
    """Updates done, this one included."""
    is_full: bool
    """Whether it ran to the full completion length."""
    loss: float | None
    grad_norm: float | None
    clip_norm: float
    """Gradient norm from which on gradients are clipped."""
    student_entropy: float | None
    teacher_entropy: float | None

    def key(self, name: str) -> str:
        """What the running mean of a signal is kept under: full-length steps have one of their own."""
        return f"{name} of full steps" if self.is_full else name


class Alarm(Frozen):
    """One alarm that was raised, or one thing that was done about it."""

    code: str
    message: str
    """One sentence with the value and the limit."""
    advice: str = ""
    """One sentence: what to do."""
    value: float | None = None
    limit: float | None = None


ADVICE = {
    "alarm_kl_spike": "Lower optimizer.learning_rate or max_grad_norm, lengthen warmup_steps, or go back to an earlier checkpoint.",
    "alarm_gradient_spike": "Lower optimizer.learning_rate or lengthen warmup_steps; larger batches have steadier gradients.",
    "alarm_entropy_collapse": "Lower optimizer.learning_rate or choose forward KL or JSD, which keep the student as broad as the teacher.",
    "alarm_length_collapse": "Switch anchoring on or lengthen the prefix; compare the end-of-text ids and chat templates of both models.",
    "alarm_length_inflation": "Switch anchoring on or lengthen the prefix, so that the student is trained where the teacher stops.",
    "alarm_cap_hits": "Switch anchoring on or lengthen the prefix; raise max_completion_tokens if texts need more; compare EOS ids.",
    "alarm_repetition": "Switch anchoring on or lengthen the prefix; a lower optimizer.learning_rate harms the untrained tail less.",
    "alarm_overlap_mass": "Lower optimizer.learning_rate, switch anchoring on, or go back to the best checkpoint.",
}


def after_step(spec: HealthSpec, state: HealthState, signals: StepSignals) -> tuple[HealthState, list[Alarm]]:
    """The state after a step, and the alarms that it raises."""
    readings = {
        "alarm_kl_spike": kl_spike(spec, state, signals),
        "alarm_gradient_spike": gradient_spike(spec, state, signals),
    }
    state = state.model_copy(update={"means": _means_after(state, signals, readings)})
    readings["alarm_entropy_collapse"] = entropy_collapse(spec, state, signals)
    return _raised(spec, state, signals.step, readings)


def after_evaluation(
    spec: HealthSpec, state: HealthState, step: int, metrics: Metrics
) -> tuple[HealthState, list[Alarm]]:
    """The state after a full-length evaluation of the student on the dev prompts, and the alarms that it raises."""
    readings = {code: reading(spec, state, metrics) for code, reading in OF_EVALUATION.items()}
    return _raised(spec, _with_overlap(state, metrics), step, readings)


def with_reference(state: HealthState, subject: Literal["base", "teacher"], metrics: Metrics) -> HealthState:
    """The state that knows the full-length figures of the untrained student or of the teacher."""
    known = {name: value for name in REFERENCES if (value := metrics.get(name)) is not None}
    return _with_overlap(state.model_copy(update={subject: known}), metrics)


def _raised(
    spec: HealthSpec, state: HealthState, step: int, readings: Mapping[str, Reading | None]
) -> tuple[HealthState, list[Alarm]]:
    """New episodes become alarms; those whose value came back and stayed end."""
    if step < spec.grace_steps:
        return state, []
    episodes, alarms = dict(state.episodes), []
    for code, reading in readings.items():
        if reading is None:
            continue
        if reading.is_beyond and code not in episodes:
            message = f"Step {step}: {reading.message}"
            alarms.append(
                Alarm(code=code, message=message, advice=ADVICE[code], value=reading.value, limit=reading.limit)
            )
        if reading.is_beyond or (code in episodes and not reading.is_well):
            episodes[code] = step
        elif code in episodes and step - episodes[code] >= spec.grace_steps:
            del episodes[code]
    return state.model_copy(update={"episodes": episodes}), alarms


def _means_after(
    state: HealthState, signals: StepSignals, readings: Mapping[str, Reading | None]
) -> dict[str, RunningMean]:
    values = {
        "loss": _capped(signals.loss, readings["alarm_kl_spike"]),
        "grad_norm": _capped(signals.grad_norm, readings["alarm_gradient_spike"]),
        "student_entropy": signals.student_entropy,
        "teacher_entropy": signals.teacher_entropy,
    }
    new = {
        signals.key(name): state.means.get(signals.key(name), RunningMean()).followed_by(value)
        for name, value in values.items()
        if value is not None
    }
    return state.means | new


def _capped(value: float | None, reading: Reading | None) -> float | None:
    """The value, but a spike counts as its limit: it must not become what is normal."""
    return value if value is None or reading is None else min(value, reading.limit)


def _with_overlap(state: HealthState, metrics: Metrics) -> HealthState:
    found = [value for value in (state.best_overlap, metrics.get("overlap_mass")) if value is not None]
    return state.model_copy(update={"best_overlap": max(found, default=None)})
