"""Which checkpoints stay: the best one is marked, pinned ones are spared, the others go as the spec says. The caller commits."""

import re

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from backend.database import now_of
from backend.queries.claims import Claim, hold
from backend.queries.transitions import add_event
from backend.records import Checkpoint, Evaluation
from engine.retention import Kept, dropped

_PATH_IN_RUN = re.compile("attempts/([0-9]+)/(.+)")


class DroppedCheckpoint(Kept):
    """A checkpoint whose row is gone and whose folder may go."""

    id: str
    path: str
    """Relative to its attempt's folder."""
    manifest_sha256: str


def set_pinned(session: Session, checkpoint_id: str, *, pinned: bool) -> bool:
    """Pin a checkpoint or let it go again; False when it does not exist, or no longer."""
    changed = session.execute(
        update(Checkpoint)
        .where(Checkpoint.id == checkpoint_id, Checkpoint.removed_at.is_(None))
        .values(pinned=pinned)
        .returning(Checkpoint.id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return changed is not None


def mark_best(session: Session, run_id: str, best_path: str | None) -> None:
    """Mark the checkpoint at a path of the run folder as its best one, and no other."""
    session.execute(update(Checkpoint).where(Checkpoint.run_id == run_id).values(is_best=False))
    found = _PATH_IN_RUN.fullmatch(best_path or "")
    if found is not None:
        same = (Checkpoint.run_id == run_id, Checkpoint.fence == int(found[1]), Checkpoint.path == found[2])
        session.execute(update(Checkpoint).where(*same).values(is_best=True))


def drop_checkpoints(session: Session, claim: Claim) -> list[DroppedCheckpoint]:
    """Take the checkpoints out of a run's list that its spec does not keep, of all its attempts. Raises LeaseLost.

    A pin that comes at the same time either spares its checkpoint or finds that it is gone: both lock its row.
    """
    hold(session, claim.run_id, claim.fence)
    rows = session.scalars(
        select(Checkpoint)
        .where(Checkpoint.run_id == claim.run_id, Checkpoint.removed_at.is_(None))
        .order_by(Checkpoint.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).all()
    of_student = (Evaluation.run_id == claim.run_id, Evaluation.subject == "student", Evaluation.split == "dev")
    measured = session.execute(select(Evaluation.step, Evaluation.metrics).where(*of_student)).all()
    scores = {step: claim.spec.evaluation.score(metrics) for step, metrics in measured}
    on_disk = [
        DroppedCheckpoint(
            id=row.id,
            path=row.path,
            manifest_sha256=row.manifest_sha256,
            step=row.step,
            attempt=row.fence,
            score=scores.get(row.step),
            is_best=row.is_best,
            is_pinned=row.pinned,
        )
        for row in rows
    ]
    gone = dropped(on_disk, claim.spec.checkpoints)
    now = now_of(session)
    for one in gone:
        session.execute(update(Checkpoint).where(Checkpoint.id == one.id).values(removed_at=now))
        payload = {"step": one.step, "path": one.path}
        add_event(session, claim.run_id, "checkpoint_removed", payload, fence=one.attempt, time=now)
    return gone
