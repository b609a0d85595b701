"""Workers that have been heard of."""

from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.database import now_of
from backend.resources import WorkerCapabilities
from backend.schemas import Worker
from backend.tables import Run
from backend.tables import Worker as WorkerRow

_MAX_SHOWN = 500
_PRESENT = timedelta(minutes=1)


def workers(session: Session) -> list[Worker]:
    """All known workers, the last heard first; which run one works on is told only of the caller's project."""
    rows = session.scalars(select(WorkerRow).order_by(WorkerRow.heartbeat_at.desc()).limit(_MAX_SHOWN)).all()
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
