"""How far a running run is and how long it still takes, from what its own steps, evaluations and checkpoints took."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import fmean, quantiles
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.database import now_of
from backend.records import Event, Metric
from engine.sentinel_spec import WatchTail
from engine.spec import RunSpec

_MIN_STEPS, _MAX_STEPS = 5, 20  # last steps that the time to go is judged by
_MAX_EVENTS = 64  # of the newest and of the oldest, among which the last few of each kind are found
_MAX_OF_KIND = 8
_MAX_PREVIEWED = 64
_TIMED = ("evaluation", "sentinel", "checkpoint")

_Payload = Mapping[str, Any]


@dataclass(frozen=True)
class Progress:
    """Of a run at work. It may end sooner than this says: early stopping and a sentinel cannot be foreseen."""

    done_share: float
    """Seconds behind it over all seconds, in [0, 1]."""
    eta_seconds: tuple[float, float]
    """Least and most seconds to go, as far as past ones tell."""


@dataclass(frozen=True)
class _Work:
    """One kind of work of a run: the seconds spent on it, how often it is still to be done, and the seconds of one."""

    spent: float
    num_left: float
    low: float
    high: float
    scale: tuple[float, float] = (1.0, 1.0)
    """What is left, over what was done, at least and at most: longer horizons take longer."""

    @property
    def left(self) -> tuple[float, float]:
        return self.num_left * self.low * self.scale[0], self.num_left * self.high * self.scale[1]


def progress_of(session: Session, run: Mapping[str, Any], progressed_at: datetime | None) -> Progress | None:
    """How far a running run is; None until some steps of distillation are done, which alone tell how long they take.

    `run` has id, spec, step and training_seconds; `progressed_at` is when something of it was last recorded.
    """
    steps = _step_work(session, run["id"], run["spec"], run["step"], run["training_seconds"] or 0.0)
    if steps is None:
        return None
    works = [steps, *_event_work(session, run["id"], run["spec"], run["step"])]
    low, high = (sum(ends) for ends in zip(*(work.left for work in works), strict=True))
    spent = sum(work.spent for work in works)
    # What has begun since the last record is neither done nor wholly to do.
    begun = _seconds_since(session, progressed_at)
    low, high = max(0.0, low - begun), max(0.0, high - begun)
    whole = spent + begun + (low + high) / 2
    return Progress((spent + begun) / whole if whole else 0.0, (low, high))


def _step_work(session: Session, id: str, spec: RunSpec, step: int, spent: float) -> _Work | None:
    first = spec.warmup_phase.num_steps
    seconds = _last_values(session, id, "seconds.total", first)
    if len(seconds) < _MIN_STEPS:
        return None
    horizons = _last_values(session, id, "horizon", first)
    low, _, high = quantiles(seconds, n=4)
    num_left = _steps_left(session, id, spec, step)
    # Limits on what is recorded may leave the horizons out.
    growth = _horizon_growth(spec, step, num_left, fmean(horizons)) if horizons else (1.0, 1.0)
    return _Work(spent, num_left, low, high, growth)


def _steps_left(session: Session, id: str, spec: RunSpec, step: int) -> float:
    left = float(spec.num_steps - step)
    flops = _last_values(session, id, "training_flops", spec.warmup_phase.num_steps)  # the newest first
    if spec.training_flops_budget is None or len(flops) < _MIN_STEPS:
        return left
    of_step = fmean(new - old for new, old in pairwise(flops))
    return min(left, max(0.0, spec.training_flops_budget - flops[0]) / of_step) if of_step > 0 else left


def _horizon_growth(spec: RunSpec, step: int, num_left: float, horizon: float) -> tuple[float, float]:
    """Mean horizon of the steps to come over that of the last ones; a step's time grows at most in that proportion."""
    ahead = range(step, step + int(num_left))
    previewed: list[tuple[float, float]] = [
        spec.preview_at(spec.distillation_step(one)) for one in ahead[:: max(1, len(ahead) // _MAX_PREVIEWED)]
    ]
    if not previewed:
        return 1.0, 1.0
    if any(short < long for short, long in previewed):
        # An adaptive schedule never goes back: the preview counts from its start, the run may be farther.
        previewed = [(max(short, horizon), max(long, horizon)) for short, long in previewed]
    shortest, longest = (fmean(ends) for ends in zip(*previewed, strict=True))
    return min(1.0, shortest / horizon), max(1.0, longest / horizon)


def _event_work(session: Session, id: str, spec: RunSpec, step: int) -> list[_Work]:
    newest, oldest = _events(session, id, newest_first=True), _events(session, id, newest_first=False)
    students = [one for kind, one in newest if kind == "evaluation" and one["subject"] == "student"]
    base = [one for kind, one in oldest if kind == "evaluation" and one["subject"] == "base" and not one["is_cached"]]
    on_dev = [one for one in students if one["split"] == "dev"] or [one for one in base if one["split"] == "dev"]
    tails = [one for kind, one in newest if kind == "sentinel"]
    saved = [one for kind, one in newest if kind == "checkpoint"]
    evaluation, watched = spec.evaluation, spec.sentinel
    found = [
        _regular(on_dev, step, spec.num_steps, evaluation.every_steps),
        _regular(saved, step, spec.num_steps, spec.checkpoints.every_steps),
    ]
    if isinstance(watched, WatchTail):
        first = spec.warmup_phase.num_steps
        found.append(_regular(tails, step - first, spec.num_steps - first, watched.every_steps, shift=first))
    if evaluation.report_path is not None:
        found.append(_report([one for one in base if one["split"] == "report"], on_dev, evaluation.num_report_prompts))
    return found


def _regular(events: Sequence[_Payload], step: int, num_steps: int, every: int, *, shift: int = 0) -> _Work:
    """What is done at every so many steps and after the last one."""
    # An attempt before a resume may have come farther; those of base models are of step 0.
    done_at = max((at for one in events if (at := one["step"] - shift) <= step), default=0)
    num_left = -(-num_steps // every) - done_at // every if done_at < num_steps else 0
    low, high = _range([one["seconds"] for one in events[:_MAX_OF_KIND]])
    num_done = max(1, done_at // every) if events else 0
    return _Work(num_done * (low + high) / 2, num_left, low, high)


def _report(base: Sequence[_Payload], on_dev: Sequence[_Payload], num_prompts: int) -> _Work:
    """The best student on the report split: like the base student there, or like evaluations of the dev split."""
    if base:
        return _Work(0.0, 1, *_range([one["seconds"] for one in base]))
    return _Work(0.0, 1, *_range([one["seconds"] * num_prompts / one["num_prompts"] for one in on_dev[:_MAX_OF_KIND]]))


def _range(seconds: Sequence[float]) -> tuple[float, float]:
    return (min(seconds), max(seconds)) if seconds else (0.0, 0.0)


def _last_values(session: Session, id: str, key: str, after_step: int) -> list[float]:
    of_key = select(Metric.value).where(Metric.run_id == id, Metric.key == key, Metric.step > after_step)
    newest = session.scalars(of_key.order_by(Metric.step.desc()).limit(_MAX_STEPS))
    return [value for value in newest if value is not None]


def _events(session: Session, id: str, *, newest_first: bool) -> list[tuple[str, _Payload]]:
    order = Event.seq.desc() if newest_first else Event.seq
    query = select(Event.kind, Event.payload).where(Event.run_id == id, Event.kind.in_(_TIMED))
    rows = session.execute(query.order_by(order).limit(_MAX_EVENTS))
    # Checkpoints of earlier versions tell no seconds.
    return [(kind, payload) for kind, payload in rows if "seconds" in payload]


def _seconds_since(session: Session, moment: datetime | None) -> float:
    return 0.0 if moment is None else max(0.0, (now_of(session) - moment).total_seconds())
