"""Workers that have been heard of."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.database import now_of
from backend.needs import Candidate
from backend.resources import WorkerCapabilities
from backend.schemas import Worker
from backend.tables import Run
from backend.tables import Worker as WorkerRow

_MAX_SHOWN = 500
_PRESENT = timedelta(minutes=1)
CLOCK_SECONDS = 5.0
"""What a worker's clock may differ from the database's before people are told."""


def workers(session: Session) -> list[Worker]:
    """All known workers, the last heard first; which run one works on is told only of the caller's project."""
    rows = session.scalars(select(WorkerRow).order_by(WorkerRow.heartbeat_at.desc()).limit(_MAX_SHOWN)).all()
    return _records(session, rows)


def worker(session: Session, worker_id: str) -> Worker:
    """One that is known to be there."""
    (found,) = _records(session, [session.get_one(WorkerRow, worker_id)])
    return found


def _records(session: Session, rows: Sequence[WorkerRow]) -> list[Worker]:
    at_work = {row.run_id for row in rows if row.run_id is not None}
    seen = {None, *session.scalars(select(Run.id).where(Run.id.in_(at_work)))}
    connected_since = now_of(session) - _PRESENT
    return [
        Worker(
            id=row.id,
            host=row.host,
            pid=row.pid,
            slot=row.slot,
            run_id=row.run_id if row.run_id in seen else None,
            heartbeat_at=row.heartbeat_at,
            is_connected=row.heartbeat_at > connected_since,
            capabilities=_capabilities(row),
            drain="no" if row.draining_since is None else "drained" if row.run_id is None else "draining",
            drain_requeues=row.drain_requeues,
            clock_offset_seconds=row.clock_offset_seconds,
        )
        for row in rows
    ]


def candidates(session: Session) -> list[Candidate]:
    """The connected workers, as far as they matter to runs that wait."""
    rows = session.scalars(select(WorkerRow).where(WorkerRow.heartbeat_at > now_of(session) - _PRESENT)).all()
    return [
        Candidate(
            place=f"{row.host}, {row.slot}", capabilities=_capabilities(row), is_draining=row.draining_since is not None
        )
        for row in rows
    ]


def _capabilities(row: WorkerRow) -> WorkerCapabilities:
    """What is known by name: a worker of another version may say more."""
    known = WorkerCapabilities.model_fields
    return WorkerCapabilities.model_validate({name: value for name, value in row.capabilities.items() if name in known})


def num_present(session: Session) -> int:
    """Workers that were heard of within the last minute."""
    query = select(func.count()).select_from(WorkerRow).where(WorkerRow.heartbeat_at > now_of(session) - _PRESENT)
    return session.scalar(query) or 0


def clock_warnings(session: Session) -> list[str]:
    """Hosts of connected workers whose clock differs from the database's by more than a few seconds, one sentence each."""
    query = (
        select(
            WorkerRow.host, func.max(func.abs(WorkerRow.clock_offset_seconds)), func.max(WorkerRow.clock_offset_seconds)
        )
        .where(WorkerRow.heartbeat_at > now_of(session) - _PRESENT)
        .group_by(WorkerRow.host)
        .having(func.max(func.abs(WorkerRow.clock_offset_seconds)) > CLOCK_SECONDS)
        .order_by(WorkerRow.host)
    )
    return [
        f"The clock of {host} is {off:.0f} s {'ahead of' if highest > 0 else 'behind'} the database's (limit {CLOCK_SECONDS:.0f} s): "
        "leases do not depend on it, but times in its logs do; set it by NTP."
        for host, off, highest in session.execute(query)
    ]
