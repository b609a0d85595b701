"""Samples of what a run's engines use, and where its attempts ran. The caller commits."""

from sqlalchemy import delete, select, tuple_
from sqlalchemy.orm import Session

from backend.database import now_of
from backend.queries.claims import hold
from backend.records import Attempt, Event
from backend.records import ResourceSample as SampleRow
from backend.resources import AttemptPlace, ResourceFigures, ResourceSample, RunResources

MAX_SAMPLES = 720
"""Of a run: two hours at one in 10 s, and any length of run in sparser ones."""
_MAX_ATTEMPTS = 50


def add_sample(session: Session, run_id: str, fence: int, figures: ResourceFigures) -> None:
    """Store a sample of the attempt that holds its run; of too many every second one goes. Raises LeaseLost."""
    hold(session, run_id, fence)
    key = (SampleRow.fence, SampleRow.number)
    stored = session.execute(select(*key).where(SampleRow.run_id == run_id).order_by(*key)).all()
    if len(stored) >= MAX_SAMPLES:
        gone = [tuple(row) for row in stored[1:-1:2]]
        session.execute(delete(SampleRow).where(SampleRow.run_id == run_id, tuple_(*key).in_(gone)))
    number = stored[-1].number + 1 if stored and stored[-1].fence == fence else 0
    sample = figures.model_dump()
    session.add(SampleRow(run_id=run_id, fence=fence, number=number, time=now_of(session), **sample))
    session.flush()


def run_resources(session: Session, run_id: str) -> RunResources:
    """The newest attempts of a run and all of its samples."""
    of_run = select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.fence.desc()).limit(_MAX_ATTEMPTS)
    started = select(Event.fence, Event.payload).where(Event.run_id == run_id, Event.kind == "started")
    told = {row.fence: row.payload for row in session.execute(started.order_by(Event.seq))}
    attempts = []
    for row in session.scalars(of_run):
        said = told.get(row.fence, {})
        attempts.append(
            AttemptPlace(
                attempt=row.fence, worker=row.worker_id, host=row.host, pid=row.pid, device=said.get("device"),
                precision=said.get("precision"), versions=said.get("versions", {}), started_at=row.started_at,
                ended_at=row.ended_at, outcome=row.outcome, exit_code=row.exit_code, resumed_from_step=row.resumed_from_step,
            )
        )  # fmt: skip
    names = [*ResourceFigures.model_fields, "time"]
    query = select(SampleRow).where(SampleRow.run_id == run_id).order_by(SampleRow.fence, SampleRow.number)
    samples = [
        ResourceSample(attempt=row.fence, **{name: getattr(row, name) for name in names})
        for row in session.scalars(query)
    ]
    return RunResources(attempts=attempts, samples=samples)
