"""What the sentinel remembers, when a tail drifts, and what the run does then. Pure functions; it imports without torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from engine.anchoring import EveryNthStep
from engine.frozen import Frozen
from engine.health import Alarm
from engine.health_readings import Metrics, Reading
from engine.prefix_state import Growth, PrefixState
from engine.prefixes import ConstantPrefix
from engine.sentinel_spec import AnchorSteps, GrowHorizon, StopRun, WatchTail

if TYPE_CHECKING:
    from engine.spec import RunSpec

# What counts as the best of a figure so far; the others are compared with the untrained student's.
_BETTER = {"reverse_kl_beyond": min, "eos_rate": max, "stop_probability": max}


class SentinelState(Frozen):
    """What the sentinel has seen and done. It is part of every checkpoint."""

    measured_step: int | None = None
    """The last step whose student was measured."""
    teacher: dict[str, float] = {}
    """The teacher's own figures on the same prompts."""
    first: dict[str, float] = {}
    """Those of the untrained student."""
    best: dict[str, float] = {}
    """The best value so far of each figure that is compared with it."""
    drifting: tuple[str, ...] = ()
    """Codes of the drifts that were told and have not ended."""
    floors: tuple[Growth, ...] = ()
    """Horizons below which no step from a certain one on falls, oldest first."""
    anchored_from: int | None = None
    """The step (counted from 0) from which on every n-th is a full one."""
    is_stopped: bool = False
    """Whether the run has to end."""

    def horizon(self, step: int, horizon: int) -> int:
        """The horizon of a step (counted from 0), given the schedule's."""
        return max([horizon, *(floor.tokens for floor in self.floors if floor.step <= step)])

    def spec_at(self, spec: RunSpec, step: int, state: PrefixState) -> RunSpec:
        """The spec in force at a step (counted from 0): with what the sentinel has changed of prefix and anchoring."""
        changes: dict[str, object] = {}
        scheduled = spec.prefix.horizon_at(spec.distillation_step(step), state)
        if (tokens := self.horizon(step, scheduled)) > scheduled:
            changes["prefix"] = ConstantPrefix(tokens=tokens)
        if self._is_anchored(spec, step):
            changes["anchoring"] = EveryNthStep(n=1)
        return spec.model_copy(update=changes) if changes else spec

    def _is_anchored(self, spec: RunSpec, step: int) -> bool:
        if self.anchored_from is None or step < self.anchored_from:
            return False
        assert isinstance(spec.sentinel, WatchTail)
        assert isinstance(spec.sentinel.action, AnchorSteps)
        return (step - self.anchored_from + 1) % spec.sentinel.action.n == 0


def after_measurement(
    spec: WatchTail, state: SentinelState, step: int, metrics: Metrics, *, horizon: int, full: int
) -> tuple[SentinelState, list[Alarm]]:
    """The state after measuring the student of `step` updates, and what a person should know.

    `horizon` is that of the last step without anchors, `full` the full completion length, in tokens.
    """
    readings = _readings(spec, state, metrics) if state.first else {}
    beyond = {code: reading for code, reading in readings.items() if reading.is_beyond}
    new = [_drift(code, reading, step) for code, reading in beyond.items() if code not in state.drifting]
    still = [code for code in state.drifting if code in readings and not readings[code].is_well]
    known = {name: value for name, value in metrics.items() if value is not None}
    best = {
        name: better(known[name], state.best.get(name, known[name]))
        for name, better in _BETTER.items()
        if name in known
    }
    seen = state.model_copy(
        update={
            "measured_step": step,
            "first": state.first or known,
            "best": state.best | best,
            "drifting": tuple(sorted({*still, *beyond})),
        }
    )
    return _acted(spec, seen, step, new, horizon=horizon, full=full) if beyond else (seen, new)


def _acted(
    spec: WatchTail, state: SentinelState, step: int, drifts: list[Alarm], *, horizon: int, full: int
) -> tuple[SentinelState, list[Alarm]]:
    """What the spec wants done about a drifting tail; told when it changes something."""
    action = spec.action
    if isinstance(action, GrowHorizon) and horizon < full:
        tokens = min(full, max(horizon + 1, math.ceil(action.factor * horizon)))
        state = state.model_copy(update={"floors": (*state.floors, Growth(step=step, tokens=tokens))})
        done = f"raises the horizon from {horizon} to at least {tokens} tokens"
    elif isinstance(action, AnchorSteps) and state.anchored_from is None:
        state = state.model_copy(update={"anchored_from": step})
        done = f"lets every {action.n}. step from now on run and train to the full length"
    elif isinstance(action, StopRun):
        state = state.model_copy(update={"is_stopped": True})
        done = "ends the run"
    else:
        return state, drifts
    words = ", ".join(code.removeprefix("sentinel_").replace("_", " ") for code in state.drifting)
    return state, [
        *drifts,
        Alarm(code="sentinel_action", message=f"Step {step}: the sentinel {done}, because of {words}."),
    ]


_ADVICE = {
    "sentinel_tail_kl": "Lengthen the prefix, switch anchoring on or lower optimizer.learning_rate; sentinel.action can do the first two.",
    "sentinel_eos_rate": "Switch anchoring on or lengthen the prefix, so that the student is trained where the teacher stops.",
    "sentinel_stop_probability": "Switch anchoring on or lengthen the prefix, so that the student is trained where the teacher stops.",
    "sentinel_length": "Switch anchoring on or lengthen the prefix; look at where the texts end in Inspect.",
    "sentinel_repetition": "Switch anchoring on or lengthen the prefix; a lower optimizer.learning_rate harms the untrained tail less.",
}


def _drift(code: str, reading: Reading, step: int) -> Alarm:
    message = f"Step {step}: {reading.message}"
    return Alarm(code=code, message=message, advice=_ADVICE[code], value=reading.value, limit=reading.limit)


def _readings(spec: WatchTail, state: SentinelState, metrics: Metrics) -> dict[str, Reading]:
    """Each figure beside its limit, where there is something to compare with."""
    readings = {
        "sentinel_tail_kl": _tail_kl(spec, state, metrics),
        "sentinel_eos_rate": _endings(spec, state, metrics, "eos_rate", "the share of texts that end by themselves"),
        "sentinel_stop_probability": _endings(
            spec, state, metrics, "stop_probability", "the probability of ending where the teacher stops"
        ),
        "sentinel_length": _length(spec, state, metrics),
        "sentinel_repetition": _repetition(spec, state, metrics),
    }
    return {code: reading for code, reading in readings.items() if reading is not None}


def _tail_kl(spec: WatchTail, state: SentinelState, metrics: Metrics) -> Reading | None:
    value, best = metrics.get("reverse_kl_beyond"), state.best.get("reverse_kl_beyond")
    if value is None or best is None:
        return None
    limit = max(spec.max_tail_kl_factor * best, spec.min_tail_kl_nats)
    message = (
        f"the reverse KL behind the horizon is {value:.3g} nats per token, the limit is {limit:.3g} "
        f"({spec.max_tail_kl_factor:g} times its best, {best:.3g}, at least {spec.min_tail_kl_nats:g})."
    )
    return Reading(value, limit, "above", message)


def _endings(spec: WatchTail, state: SentinelState, metrics: Metrics, name: str, words: str) -> Reading | None:
    value, best, teacher = metrics.get(name), state.best.get(name), state.teacher.get(name)
    if value is None or best is None or teacher is None:
        return None
    limit = spec.min_eos_share * min(best, teacher)
    message = (
        f"{words} is {value:.0%}, the limit is {limit:.0%} ({spec.min_eos_share:g} of the smaller of the teacher's {teacher:.0%} "
        f"and the student's best, {best:.0%})."
    )
    return Reading(value, limit, "below", message)


def _length(spec: WatchTail, state: SentinelState, metrics: Metrics) -> Reading | None:
    value, first, teacher = (known.get("mean_tokens") for known in (metrics, state.first, state.teacher))
    if value is None or first is None or teacher is None:
        return None
    limit = spec.min_length_share * min(first, teacher)
    message = (
        f"whole texts have {value:.4g} tokens, the limit is {limit:.4g} ({spec.min_length_share:g} of the shorter of the "
        f"untrained student's {first:.4g} and the teacher's {teacher:.4g})."
    )
    return Reading(value, limit, "below", message)


def _repetition(spec: WatchTail, state: SentinelState, metrics: Metrics) -> Reading | None:
    value, first, teacher = (known.get("repetition") for known in (metrics, state.first, state.teacher))
    if value is None or first is None or teacher is None:
        return None
    limit = max(first, teacher) + spec.max_repetition_rise
    message = (
        f"{value:.0%} of the 4-grams of whole texts are repetitions, the limit is {limit:.0%} ({spec.max_repetition_rise:.0%} above the "
        f"larger of the untrained student's {first:.0%} and the teacher's {teacher:.0%})."
    )
    return Reading(value, limit, "above", message)
