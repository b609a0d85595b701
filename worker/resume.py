"""The checkpoint that the next attempt of a run starts from."""

import logging
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select, update

from backend.database import Database, now_of
from backend.queries.claims import Claim, hold
from backend.queries.transitions import add_event
from backend.records import Attempt, Checkpoint
from worker.manifest import is_intact

_log = logging.getLogger(__name__)


def resume_checkpoint(database: Database, claim: Claim, run_folder: Path, on_chunk: Callable[[], None]) -> Path | None:
    """The newest committed checkpoint that is intact, relative to the run's folder; None when there is none.

    Damaged ones are taken out of the list, with a note in the run's history.
    """
    with database.read() as session:
        newest_first = session.scalars(
            select(Checkpoint)
            .where(
                Checkpoint.run_id == claim.run_id,
                Checkpoint.removed_at.is_(None),
                Checkpoint.fence >= claim.first_fence,
            )
            .order_by(Checkpoint.step.desc(), Checkpoint.fence.desc())
        ).all()
    for checkpoint in newest_first:
        path = Path("attempts", str(checkpoint.fence), checkpoint.path)
        if is_intact(run_folder / path, checkpoint.manifest_sha256, on_chunk):
            _note_resume(database, claim, checkpoint.id)
            return path
        _note_damage(database, claim, checkpoint)
    return None


def _note_resume(database: Database, claim: Claim, checkpoint_id: str) -> None:
    with database.write() as session:
        hold(session, claim.run_id, claim.fence)
        session.execute(
            update(Attempt)
            .where(Attempt.run_id == claim.run_id, Attempt.fence == claim.fence)
            .values(resume_checkpoint_id=checkpoint_id)
        )


def _note_damage(database: Database, claim: Claim, checkpoint: Checkpoint) -> None:
    message = f"The checkpoint of step {checkpoint.step} differs from its manifest or is gone; an older one is tried."
    _log.warning("Run %s: %s", claim.run_id, message)
    with database.write() as session:
        hold(session, claim.run_id, claim.fence)
        now = now_of(session)
        session.execute(update(Checkpoint).where(Checkpoint.id == checkpoint.id).values(removed_at=now))
        payload = {"code": "bad_checkpoint", "message": message}
        add_event(session, claim.run_id, "warning", payload, fence=claim.fence, time=now)
