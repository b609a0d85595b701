"""Runs as people read them; what people want of them is in wishes.py."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.orm import Session

from backend.project_database import EVERY_PROJECT
from backend.queries.progress import progress_of
from backend.queries.waiting import needs_of_runs, reasons
from backend.records import Event
from backend.run_states import RunState
from backend.schemas import Run, RunSummary
from backend.tables import Experiment as ExperimentRow
from backend.tables import Run as RunRow

_NUM_RATES = 20  # last finished runs that the speed of a pair is judged by

# The columns of a line of the list; the spec, the largest one, stays in the database.
_SUMMARY: Select[*tuple[Any, ...]] = select(
    RunRow.id,
    RunRow.experiment_id,
    ExperimentRow.name.label("experiment_name"),
    RunRow.name,
    RunRow.variant,
    RunRow.note,
    RunRow.seed,
    RunRow.state,
    RunRow.desired_state,
    RunRow.priority,
    RunRow.phase,
    RunRow.last_step.label("step"),
    RunRow.num_steps,
    RunRow.student,
    RunRow.teacher,
    RunRow.prefix,
    RunRow.divergence,
    RunRow.attempt,
    RunRow.best_accuracy,
    RunRow.report_accuracy,
    RunRow.training_flops,
    RunRow.training_seconds,
    RunRow.failure_kind,
    RunRow.failure_message,
    RunRow.created_at,
    RunRow.started_at,
    RunRow.finished_at,
    RunRow.heartbeat_at,
).join(ExperimentRow, ExperimentRow.id == RunRow.experiment_id)


@dataclass(frozen=True)
class RunFilter:
    """Which runs a list shows."""

    states: Sequence[RunState] = ()
    experiment_id: str | None = None
    search: str | None = None
    """Part of the run's or the experiment's name, in either case."""


def runs(session: Session, wanted: RunFilter, *, before: str | None = None, limit: int = 100) -> list[RunSummary]:
    """Runs, newest first, those behind id `before`."""
    # The ids first: where an index leads to them in another order, whole lines would be read and sorted to show 100.
    query = select(RunRow.id).order_by(RunRow.id.desc()).limit(limit)
    if wanted.states:
        query = query.where(RunRow.state.in_(wanted.states))
    if wanted.experiment_id is not None:
        query = query.where(RunRow.experiment_id == wanted.experiment_id)
    if wanted.search is not None:
        either = (name.icontains(wanted.search, autoescape=True) for name in (RunRow.name, ExperimentRow.name))
        query = query.join(ExperimentRow, ExperimentRow.id == RunRow.experiment_id).where(or_(*either))
    if before is not None:
        query = query.where(RunRow.id < before)
    lines = _SUMMARY.where(RunRow.id.in_(query)).order_by(RunRow.id.desc())
    found = session.execute(lines).mappings().all()
    waits = reasons(session, [row["id"] for row in found if row["state"] == "queued"])
    return [RunSummary.model_validate({**row, "waits_because": waits.get(row["id"])}) for row in found]


def run(session: Session, id: str) -> Run | None:
    """One run with its spec."""
    beside = (RunRow.spec, RunRow.flops, RunRow.executed_flops, RunRow.row_version, RunRow.progressed_at)
    newest = select(func.coalesce(func.max(Event.seq), 0)).where(Event.run_id == id).scalar_subquery().label("last_seq")
    row = session.execute(_SUMMARY.add_columns(*beside, newest).where(RunRow.id == id)).mappings().one_or_none()
    if row is None:
        return None
    values = dict(row)
    progressed_at = values.pop("progressed_at")
    is_queued = values["state"] == "queued"
    ahead = progress_of(session, values, progressed_at) if values["state"] == "running" else None
    return Run.model_validate(
        {
            **values,
            "done_share": ahead and ahead.done_share,
            "eta_seconds": ahead and ahead.eta_seconds,
            "queue_position": _queue_position(session, id, values["priority"]) if is_queued else None,
            "needs": needs_of_runs(session, [id])[id],
            "waits_because": reasons(session, [id]).get(id) if is_queued else None,
        }
    )


def exists(session: Session, id: str) -> bool:
    """Whether there is such a run."""
    return session.scalar(select(RunRow.id).where(RunRow.id == id)) is not None


def project_of(session: Session, id: str) -> str:
    """The project that a run belongs to, and with it what is made of the run."""
    return session.execute(select(RunRow.project_id).where(RunRow.id == id)).scalar_one()


def num_queued_by(session: Session, principal_id: str) -> int:
    """Runs in the queue that somebody has made; see hold_queue_of."""
    hold_queue_of(session, principal_id)
    count = select(func.count()).select_from(RunRow).where(RunRow.state == "queued", RunRow.created_by == principal_id)
    return session.scalar(count) or 0


def hold_queue_of(session: Session, principal_id: str) -> None:
    """On PostgreSQL, let another request of theirs wait until this one has ended, so that both count right."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext(principal_id))))


def training_rates(session: Session, student: str, teacher: str) -> list[float]:
    """FLOP/s of the last finished runs of this pair of models on this installation."""
    query = (
        select(RunRow.training_flops, RunRow.training_seconds)
        .where(RunRow.state == "succeeded", RunRow.student == student, RunRow.teacher == teacher)
        .order_by(RunRow.id.desc())
        .limit(_NUM_RATES)
    )
    return [flops / seconds for flops, seconds in session.execute(query) if flops and seconds]


def _queue_position(session: Session, id: str, priority: int) -> int:
    """Behind the more urgent ones, and those of its priority in turn: one of each owner, then the second of each."""
    owners = (RunRow.project_id, RunRow.created_by)
    turn = func.row_number().over(partition_by=owners, order_by=RunRow.id).label("turn")
    is_peer = (RunRow.state == "queued", RunRow.priority == priority)
    peers = select(RunRow.id, turn).where(*is_peer).subquery()
    own = select(peers.c.turn).where(peers.c.id == id).scalar_subquery()
    is_before = or_(peers.c.turn < own, and_(peers.c.turn == own, peers.c.id < id))
    before = select(func.count()).select_from(peers).where(is_before)
    urgent = select(func.count()).select_from(RunRow).where(RunRow.state == "queued", RunRow.priority > priority)
    return 1 + sum(session.scalar(count, execution_options=EVERY_PROJECT) or 0 for count in (before, urgent))
