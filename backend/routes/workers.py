"""Workers: who is there, and who is to take nothing new."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Path
from sqlalchemy.orm import Session

from backend.dependencies import Bell, Reading, Store, errors
from backend.locked_route import locked_router
from backend.problems import not_found
from backend.queries import drains
from backend.queries import workers as queries
from backend.schemas import Worker
from engine.frozen import Frozen

router = locked_router(prefix="/workers", tags=["workers"])

WorkerId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.:-]{1,128}$", description="As the list gives it.")]
_ERRORS = errors(403, 404, 413, 415)


class Drain(Frozen):
    """How a worker shall become free."""

    requeue: bool = False
    """Give back the run it works on, with a checkpoint, for another worker to go on with; else the run is finished first."""


@router.get("", operation_id="list_workers", responses=errors())
def list_workers(session: Reading) -> list[Worker]:
    """Workers that have been heard of, the last heard first."""
    return queries.workers(session)


@router.post("/{worker_id}/drain", operation_id="drain_worker", responses=_ERRORS)
def drain_worker(worker_id: WorkerId, database: Store, body: Drain | None = None) -> Worker:
    """Let a worker take nothing new until it is resumed or started again; it is drained when nothing is left to it."""
    wanted = body or Drain()
    return _asked(worker_id, database, lambda session: drains.drain(session, worker_id, requeue=wanted.requeue))


@router.post("/{worker_id}/resume", operation_id="resume_worker", responses=_ERRORS)
def resume_worker(worker_id: WorkerId, database: Store, doorbell: Bell) -> Worker:
    """Let a drained worker take runs again."""
    found = _asked(worker_id, database, lambda session: drains.resume(session, worker_id))
    doorbell.ring_run(worker_id)  # whatever waits: the id in a message is only a hint
    return found


def _asked(worker_id: str, database: Store, ask: Callable[[Session], bool]) -> Worker:
    """The worker after `ask`, all in one transaction."""
    with database.write() as session:
        if not ask(session):
            raise not_found("worker", worker_id)
        session.expire_all()
        return queries.worker(session, worker_id)
