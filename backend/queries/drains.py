"""Workers that are drained: they take nothing new, and finish or give back what they have. The caller commits."""

from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from backend.database import now_of
from backend.tables import Worker


def drain(session: Session, worker_id: str, *, requeue: bool) -> bool:
    """Let a worker take nothing new; with `requeue` also give back what it has, with a checkpoint. False when there is none."""
    since = func.coalesce(Worker.draining_since, now_of(session))
    return _write(session, worker_id, draining_since=since, drain_requeues=requeue)


def resume(session: Session, worker_id: str) -> bool:
    """Let a worker take runs again. False when there is none."""
    return _write(session, worker_id, draining_since=None, drain_requeues=False)


def draining(session: Session, worker_ids: Sequence[str]) -> set[str]:
    """Which of these workers take nothing new."""
    query = select(Worker.id).where(Worker.id.in_(worker_ids), Worker.draining_since.is_not(None))
    return set(session.scalars(query))


def gives_back(session: Session, worker_id: str) -> bool:
    """Whether a worker is to give back what it works on."""
    is_asked = (Worker.id == worker_id, Worker.draining_since.is_not(None), Worker.drain_requeues)
    return session.execute(select(Worker.id).where(*is_asked)).first() is not None


def _write(session: Session, worker_id: str, **columns: object) -> bool:
    changed = session.execute(
        update(Worker)
        .where(Worker.id == worker_id)
        .values(**columns)
        .returning(Worker.id)
        .execution_options(synchronize_session=False)
    )
    return changed.one_or_none() is not None
