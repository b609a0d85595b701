"""What a run has recorded: events, evaluations, curves by position; metrics.py has its metrics."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session

from backend.records import Evaluation as EvaluationRow
from backend.records import Event as EventRow
from backend.records import PositionCurve
from backend.schemas import Evaluation, EventPage, Positions, StoredEvent


def events(session: Session, run_id: str, *, after_seq: int, limit: int, kinds: Sequence[str] = ()) -> EventPage:
    """The run's history behind a sequence number, oldest first; all kinds of events if none is named."""
    query = (
        select(EventRow).where(EventRow.run_id == run_id, EventRow.seq > after_seq).order_by(EventRow.seq).limit(limit)
    )
    if kinds:
        query = query.where(EventRow.kind.in_(kinds))
    items = [
        StoredEvent(seq=row.seq, time=row.time, kind=row.kind, attempt=row.fence, payload=row.payload)
        for row in session.scalars(query)
    ]
    return EventPage(items=items, last_seq=items[-1].seq if items else after_seq)


def evaluations(session: Session, run_id: str) -> list[Evaluation]:
    """All evaluations, by step; base and teacher, step 0, first."""
    query = (
        select(EvaluationRow)
        .where(EvaluationRow.run_id == run_id)
        .order_by(EvaluationRow.step, EvaluationRow.subject, EvaluationRow.split)
    )
    return [
        Evaluation.model_validate({name: getattr(row, name) for name in Evaluation.model_fields})
        for row in session.scalars(query)
    ]


def positions(session: Session, run_id: str, *, source: str | None, steps: Sequence[int]) -> list[Positions]:
    """Curves by position, in order of steps; of training about a hundred and the last, unless steps are named."""
    chosen: list[ColumnElement[bool]] = [PositionCurve.run_id == run_id]
    if source is not None:
        chosen.append(PositionCurve.source == source)
    if steps:
        chosen.append(PositionCurve.step.in_(steps))
    else:
        last = session.scalar(select(func.max(PositionCurve.step)).where(PositionCurve.run_id == run_id)) or 0
        stride = max(1, last // 100)
        spaced = or_(PositionCurve.step % stride == 0, PositionCurve.step == last)
        chosen.append(or_(PositionCurve.source != "training", spaced))
    query = select(PositionCurve).where(*chosen).order_by(PositionCurve.step, PositionCurve.source, PositionCurve.split)
    return [
        Positions.model_validate({name: getattr(row, name) for name in Positions.model_fields})
        for row in session.scalars(query)
    ]
