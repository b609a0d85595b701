"""Copies the events of an attempt into rows, together with the byte offset up to which they were read: all or nothing.

The same event is never recorded twice, and an attempt that starts from a checkpoint replaces what earlier attempts had
recorded after it, so each step is in the rows once. The caller commits.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from backend.database import now_in_sql, now_of
from backend.limits import Limits
from backend.queries.claims import LeaseLost, hold
from backend.queries.metric_rows import upsert, write_metrics, write_steps
from backend.queries.metrics import remove_highlights
from backend.queries.raising import raise_evaluation, raise_warning
from backend.queries.recording_limits import RecordingLimits
from backend.queries.retention import mark_best
from backend.queries.step_profiles import write_profile
from backend.queries.transitions import TransitionRejected, add_event, transition
from backend.records import Attempt, Checkpoint, Evaluation, Metric, PositionCurve, Rollout, StepProfile
from backend.tables import Run
from engine.events import (
    CheckpointRemoved,
    CheckpointSaved,
    Evaluated,
    PhaseChanged,
    Ready,
    RolloutSummary,
    RunEvent,
    Started,
    StepDone,
    TailMeasured,
    TracesWritten,
    Warned,
)
from engine.manifest import ManifestFile

# What the history leaves out of an event, because it is in rows of its own.
_NOT_IN_HISTORY = {"event_version", "time", "kind", "rollouts", "position_reverse_kl", "position_p90",
                   "position_teacher_entropy", "position_count", "verdicts", "profile"}  # fmt: skip


@dataclass(frozen=True)
class AttemptEvents:
    """Events that follow each other in one attempt's events.jsonl."""

    run_id: str
    fence: int
    """The attempt that emitted them."""
    holder: int
    """The fence that holds the run now: the same, or that of a later attempt which completes a dead one's record."""
    events: Sequence[RunEvent]
    start_offset: int
    """Bytes before the first event."""
    end_offset: int
    """Bytes up to the end of the last one."""
    manifests: dict[str, list[ManifestFile]]
    """Files of the checkpoints among the events, by their path; a checkpoint that is not in it is gone already."""
    known_keys: set[str] = field(default_factory=set)
    """Metrics that the run is known to have, kept between batches: asking costs as much as writing a step."""


def record(session: Session, batch: AttemptEvents, limits: Limits) -> None:
    """Write the rows of a batch and move the offset on. Raises LeaseLost when the run is in other hands.

    What is beyond the limits is left out, which the history then says once.
    """
    steps = [event for event in batch.events if isinstance(event, StepDone)]
    # Between evaluations and checkpoints a batch has nothing but steps: the run's row is written once then, not twice.
    has_only_steps = bool(steps) and len(steps) == len(batch.events)
    columns = _columns_after(steps) if has_only_steps else {}
    hold(session, batch.run_id, batch.holder, progressed_at=now_in_sql(session), **columns)
    moved = session.execute(
        update(Attempt)
        .where(
            Attempt.run_id == batch.run_id,
            Attempt.fence == batch.fence,
            Attempt.event_offset == batch.start_offset,
        )
        .values(event_offset=batch.end_offset)
        .returning(Attempt.fence)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if moved is None:
        raise LeaseLost(f"Another process records attempt {batch.fence} of run {batch.run_id}.")
    watch = RecordingLimits(session, batch.run_id, limits, batch.known_keys)
    if has_only_steps:
        write_steps(session, batch.run_id, batch.fence, steps, watch)
    else:
        _add_events(session, batch, watch)
    for warning in watch.warnings():
        _add_to_history(session, batch, warning)


def _add_events(session: Session, batch: AttemptEvents, watch: RecordingLimits) -> None:
    columns: dict[str, Any] = {}
    for event in batch.events:
        columns |= _rows_of(session, batch, event, watch)
        if not isinstance(event, StepDone):
            _add_to_history(session, batch, event)
        if isinstance(event, Warned):
            raise_warning(session, batch.run_id, event)
        elif isinstance(event, Evaluated) and event.subject == "student" and event.split == "dev":
            raise_evaluation(session, batch.run_id, event)
    if any(isinstance(event, StepDone | Started) for event in batch.events):
        columns["training_seconds"] = _training_seconds(session, batch.run_id)
    if columns:
        hold(session, batch.run_id, batch.holder, **columns)


def _add_to_history(session: Session, batch: AttemptEvents, event: RunEvent) -> None:
    payload = event.model_dump(mode="json", exclude=_NOT_IN_HISTORY)
    time = datetime.fromtimestamp(event.time, UTC)
    add_event(session, batch.run_id, event.kind, payload, fence=batch.fence, time=time)


def _rows_of(session: Session, batch: AttemptEvents, event: RunEvent, watch: RecordingLimits) -> dict[str, Any]:
    """Write what one event adds to the tables; the columns of its run that it changes."""
    match event:
        case Started():
            return _start(session, batch, event)
        case PhaseChanged(phase=phase):
            return {"phase": phase}
        case Ready():
            return _ready(session, batch)
        case StepDone():
            write_steps(session, batch.run_id, batch.fence, [event], watch)
            return _columns_after([event])
        case Evaluated():
            return _add_evaluation(session, batch, event)
        case TailMeasured():
            return _add_tail(session, batch, event, watch)
        case TracesWritten():
            _add_rollouts(session, batch, event, watch.rollouts(event))
        case CheckpointSaved():
            return _add_checkpoint(session, batch, event)
        case CheckpointRemoved(path=path):
            _remove_checkpoints(session, batch, Checkpoint.fence == batch.fence, Checkpoint.path == path)
    return {}


def _start(session: Session, batch: AttemptEvents, event: Started) -> dict[str, Any]:
    first_gone = event.resumed_from_step + 1
    for table in (Metric, Evaluation, PositionCurve, Rollout, StepProfile):
        session.execute(delete(table).where(table.run_id == batch.run_id, table.step >= first_gone))
    remove_highlights(session, batch.run_id, first_gone)
    _remove_checkpoints(session, batch, Checkpoint.fence < batch.fence, Checkpoint.step >= first_gone)
    session.execute(
        update(Attempt)
        .where(Attempt.run_id == batch.run_id, Attempt.fence == batch.fence)
        .values(resumed_from_step=event.resumed_from_step)
    )
    flops = select(Metric.value).where(
        Metric.run_id == batch.run_id, Metric.key == "training_flops", Metric.step == event.resumed_from_step
    )
    best = select(func.max(Checkpoint.accuracy)).where(
        Checkpoint.run_id == batch.run_id, Checkpoint.removed_at.is_(None)
    )
    return {
        "last_step": event.resumed_from_step,
        "training_flops": session.execute(flops).scalar_one_or_none(),
        "best_accuracy": session.execute(best).scalar_one(),
        "report_accuracy": None,
    }


def _ready(session: Session, batch: AttemptEvents) -> dict[str, Any]:
    if batch.fence != batch.holder:
        return {}
    with suppress(TransitionRejected):  # when it is being paused or cancelled already
        transition(
            session, batch.run_id, "running", actor="holder", reason="The models are loaded.", fence=batch.holder
        )
    return {"ready_at": now_of(session)}


def _columns_after(steps: Sequence[StepDone]) -> dict[str, Any]:
    """What steps change in their run; its seconds grow by theirs, so that no batch adds up all that came before."""
    last, seconds = steps[-1], sum(step.seconds.get("total", 0.0) for step in steps)
    return {
        "last_step": last.step,
        "flops": last.flops,
        "training_flops": last.flops.training,
        "executed_flops": last.executed_flops,
        "training_seconds": func.coalesce(Run.training_seconds, 0.0) + seconds,
    }


def _add_tail(session: Session, batch: AttemptEvents, event: TailMeasured, watch: RecordingLimits) -> dict[str, Any]:
    """The sentinel's figures are metrics of their step, the teacher's beside them."""
    values = {f"sentinel_{name}": value for name, value in event.metrics.items()} | {
        f"sentinel_teacher_{name}": value for name, value in event.teacher_metrics.items()
    }
    write_metrics(session, batch.run_id, batch.fence, {event.step: watch.metrics(event.step, event.time, values)})
    return {"flops": event.flops}


def _add_evaluation(session: Session, batch: AttemptEvents, event: Evaluated) -> dict[str, Any]:
    key = {"run_id": batch.run_id, "step": event.step, "fence": batch.fence, "split": event.split}
    evaluation = {"subject": event.subject, "num_prompts": event.num_prompts, "horizon": event.horizon,
                  "metrics": event.metrics, "training_flops": event.flops.training, "is_best": event.is_best,
                  "training_seconds": _training_seconds(session, batch.run_id), "verdicts": event.verdicts,
                  "sampled_tokens": _sum_until(session, batch.run_id, "rollout_tokens", event.step),
                  "trained_tokens": _sum_until(session, batch.run_id, "supervised_tokens", event.step)}  # fmt: skip
    if event.is_best:
        same = (Evaluation.run_id == batch.run_id, Evaluation.subject == event.subject, Evaluation.split == event.split)
        session.execute(update(Evaluation).where(*same).values(is_best=False))
    upsert(session, Evaluation, [key | evaluation])
    if event.position_reverse_kl and event.subject != "teacher":
        curve = {"source": event.subject, "horizon": event.horizon, "mean": event.position_reverse_kl,
                 "p90": event.position_p90, "teacher_entropy": event.position_teacher_entropy,
                 "count": event.position_count}  # fmt: skip
        upsert(session, PositionCurve, [key | curve])
    if event.subject != "student":
        return {"flops": event.flops}
    accuracy = event.metrics.get("accuracy")
    if event.split == "report":
        return {"flops": event.flops, "report_accuracy": accuracy}
    return {"flops": event.flops} | ({"best_accuracy": accuracy} if event.is_best else {})


def _add_rollouts(session: Session, batch: AttemptEvents, event: TracesWritten, rollouts: list[RolloutSummary]) -> None:
    session.execute(
        delete(Rollout).where(
            Rollout.run_id == batch.run_id, Rollout.step == event.step, Rollout.subject == event.subject
        )
    )
    session.add_all(
        Rollout(
            run_id=batch.run_id,
            fence=batch.fence,
            step=event.step,
            subject=event.subject,
            horizon=event.horizon,
            path=event.path,
            **rollout.model_dump(),
        )
        for rollout in rollouts
    )
    session.flush()
    if rollouts and event.profile is not None:
        write_profile(session, batch.run_id, batch.fence, event, event.profile)


def _add_checkpoint(session: Session, batch: AttemptEvents, event: CheckpointSaved) -> dict[str, Any]:
    files = batch.manifests.get(event.path)
    time = datetime.fromtimestamp(event.time, UTC)
    # Saved again at the same step, as a stop right after a regular checkpoint does: the row follows the folder.
    same = (Checkpoint.run_id == batch.run_id, Checkpoint.fence == batch.fence, Checkpoint.path == event.path)
    was_pinned = session.scalar(select(Checkpoint.pinned).where(*same))
    session.execute(delete(Checkpoint).where(*same))
    if event.is_best or event.best_path is not None:
        mark_best(session, batch.run_id, event.best_path)
    checkpoint = Checkpoint(
        run_id=batch.run_id,
        fence=batch.fence,
        step=event.step,
        path=event.path,
        manifest_sha256=event.manifest_sha256,
        num_bytes=event.num_bytes,
        accuracy=event.accuracy,
        is_best=event.is_best,
        pinned=bool(was_pinned),
        files=[file.model_dump(mode="json") for file in files or []],
        created_at=time,
        removed_at=None if files else time,
    )
    session.add(checkpoint)
    session.flush()
    # Progress: only attempts that end without a new checkpoint count against max_attempts.
    return {"last_checkpoint_id": checkpoint.id, "attempt": 1} if files else {}


def _remove_checkpoints(session: Session, batch: AttemptEvents, *where: Any) -> None:
    session.execute(
        update(Checkpoint)
        .where(Checkpoint.run_id == batch.run_id, Checkpoint.removed_at.is_(None), Checkpoint.pinned.is_(False), *where)
        .values(removed_at=now_of(session))
    )


def _training_seconds(session: Session, run_id: str) -> float:
    session.flush()
    total = select(func.sum(Metric.value)).where(Metric.run_id == run_id, Metric.key == "seconds.total")
    return float(session.execute(total).scalar_one() or 0.0)


def _sum_until(session: Session, run_id: str, key: str, step: int) -> float | None:
    """The sum of a metric up to a step; None where no step has it."""
    of_key = (Metric.run_id == run_id, Metric.key == key, Metric.step <= step)
    return session.execute(select(func.sum(Metric.value)).where(*of_key)).scalar_one()
