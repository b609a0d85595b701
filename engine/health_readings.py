"""What the alarms look at: each function gives a watched value beside its limit, or None where there is nothing to compare.

It imports without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from engine.health_spec import HealthSpec

if TYPE_CHECKING:
    from engine.health import HealthState, StepSignals

Metrics = Mapping[str, float | None]

_REARM = 0.8  # of a limit: a value has to come back to this before the same alarm can be raised again
_QUIET_NATS = 0.05  # where the teacher itself is this certain, the student has no entropy to lose


@dataclass(frozen=True)
class Reading:
    """A watched value beside its limit."""

    value: float
    limit: float
    side: Literal["above", "below"]
    """On which side of the limit the trouble lies."""
    message: str

    @property
    def is_beyond(self) -> bool:
        """Whether the limit is reached; a lower limit of 0 never is."""
        return self.value >= self.limit if self.side == "above" else self.limit > 0 and self.value <= self.limit

    @property
    def is_well(self) -> bool:
        """Whether the value is so far inside that an episode is over."""
        return self.value <= _REARM * self.limit if self.side == "above" else self.value >= self.limit / _REARM


def kl_spike(spec: HealthSpec, state: HealthState, signals: StepSignals) -> Reading | None:
    """The loss of a step beside its running mean."""
    mean = _mean(spec, state, "loss", signals)
    if mean is None or signals.loss is None:
        return None
    limit = max(spec.kl_spike_factor * mean, spec.kl_spike_nats)
    message = (
        f"the loss is {signals.loss:.3g} nats per token, the limit is {limit:.3g} "
        f"({spec.kl_spike_factor:g} times its running mean of {mean:.3g}, at least {spec.kl_spike_nats:g})."
    )
    return Reading(signals.loss, limit, "above", message)


def gradient_spike(spec: HealthSpec, state: HealthState, signals: StepSignals) -> Reading | None:
    """The gradient norm of a step, before clipping, beside its running mean."""
    mean = _mean(spec, state, "grad_norm", signals)
    if mean is None or signals.grad_norm is None:
        return None
    limit = spec.gradient_spike_factor * max(mean, signals.clip_norm)
    message = (
        f"the gradient norm is {signals.grad_norm:.3g}, the limit is {limit:.3g} ({spec.gradient_spike_factor:g} times the "
        f"larger of its running mean {mean:.3g} and max_grad_norm {signals.clip_norm:g})."
    )
    return Reading(signals.grad_norm, limit, "above", message)


def entropy_collapse(spec: HealthSpec, state: HealthState, signals: StepSignals) -> Reading | None:
    """The student's running entropy beside the teacher's on the same tokens."""
    student = _mean(spec, state, "student_entropy", signals)
    teacher = _mean(spec, state, "teacher_entropy", signals)
    if student is None or teacher is None or teacher < _QUIET_NATS:
        return None
    limit = spec.min_entropy_share * teacher
    message = (
        f"the student's entropy is {student:.3g} nats per token (running mean), the limit is {limit:.3g} "
        f"({spec.min_entropy_share:g} of the teacher's {teacher:.3g} on the same tokens)."
    )
    return Reading(student, limit, "below", message)


def length_collapse(spec: HealthSpec, state: HealthState, metrics: Metrics) -> Reading | None:
    """Full-length completions that have become too short."""
    value, base, teacher = _beside(state, metrics, "mean_tokens")
    if value is None or base is None or teacher is None:
        return None
    limit = spec.min_length_share * min(base, teacher)
    message = (
        f"full-length completions have {value:.4g} tokens, the limit is {limit:.4g} ({spec.min_length_share:g} of the shorter "
        f"of base student's {base:.4g} and teacher's {teacher:.4g})."
    )
    return Reading(value, limit, "below", message)


def length_inflation(spec: HealthSpec, state: HealthState, metrics: Metrics) -> Reading | None:
    """Full-length completions that have become too long."""
    value, base, teacher = _beside(state, metrics, "mean_tokens")
    if value is None or base is None or teacher is None:
        return None
    limit = spec.max_length_factor * max(base, teacher)
    message = (
        f"full-length completions have {value:.4g} tokens, the limit is {limit:.4g} ({spec.max_length_factor:g} times the longer "
        f"of base student's {base:.4g} and teacher's {teacher:.4g})."
    )
    return Reading(value, limit, "above", message)


def cap_hits(spec: HealthSpec, state: HealthState, metrics: Metrics) -> Reading | None:
    """The share of completions that end by themselves: what is left is cut at the cap."""
    value, base, teacher = _beside(state, metrics, "eos_rate")
    # A teacher that never ends is no measure; what the student could do before training then is.
    whose, reference = ("teacher's", teacher) if teacher else ("base student's", base)
    if value is None or not reference:
        return None
    limit = spec.min_eos_share * reference
    message = (
        f"{value:.0%} of full-length completions end by themselves, the rest hit max_completion_tokens; the limit is {limit:.0%} "
        f"({spec.min_eos_share:g} of the {whose} {reference:.0%})."
    )
    return Reading(value, limit, "below", message)


def repetition(spec: HealthSpec, state: HealthState, metrics: Metrics) -> Reading | None:
    """The share of 4-grams that occurred before in the same completion."""
    value, base, teacher = _beside(state, metrics, "repetition")
    if value is None or base is None or teacher is None:
        return None
    limit = max(base, teacher) + spec.max_repetition_rise
    message = (
        f"{value:.0%} of the 4-grams of full-length completions are repetitions, the limit is {limit:.0%} "
        f"({spec.max_repetition_rise:.0%} above the larger of base student's {base:.0%} and teacher's {teacher:.0%})."
    )
    return Reading(value, limit, "above", message)


def overlap_mass(spec: HealthSpec, state: HealthState, metrics: Metrics) -> Reading | None:
    """The probability mass that both models share, the mean over tokens of the sum of min(p, q)."""
    value, best = metrics.get("overlap_mass"), state.best_overlap
    if value is None or best is None:
        return None
    limit = spec.min_overlap_share * best
    message = (
        f"student and teacher share {value:.0%} of the probability mass per token at full length, the limit is {limit:.0%} "
        f"({spec.min_overlap_share:g} of the best so far, {best:.0%})."
    )
    return Reading(value, limit, "below", message)


REFERENCES = ("mean_tokens", "eos_rate", "repetition")
"""Figures of base student and teacher that the student's are compared with."""
OF_EVALUATION: dict[str, Callable[[HealthSpec, HealthState, Metrics], Reading | None]] = {
    "alarm_length_collapse": length_collapse,
    "alarm_length_inflation": length_inflation,
    "alarm_cap_hits": cap_hits,
    "alarm_repetition": repetition,
    "alarm_overlap_mass": overlap_mass,
}


def _beside(state: HealthState, metrics: Metrics, name: str) -> tuple[float | None, float | None, float | None]:
    """The student's figure, the untrained student's and the teacher's."""
    return metrics.get(name), state.base.get(name), state.teacher.get(name)


def _mean(spec: HealthSpec, state: HealthState, name: str, signals: StepSignals) -> float | None:
    """The running mean, once it rests on enough steps."""
    mean = state.means.get(signals.key(name))
    return mean.value if mean is not None and mean.count >= spec.grace_steps else None
