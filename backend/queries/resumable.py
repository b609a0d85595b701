"""Which checkpoints a run may go on from."""

from sqlalchemy import ColumnElement, and_, or_, select

from backend.records import Attempt, Checkpoint


def may_be_whole() -> ColumnElement[bool]:
    """Checkpoints in the list, and those that were found damaged while no attempt has trained over them since.

    People are told to restore a damaged folder; a disk that was not mounted comes back by itself.
    """
    trained_over = (
        select(Attempt.fence)
        .where(
            Attempt.run_id == Checkpoint.run_id,
            Attempt.fence > Checkpoint.fence,
            Attempt.event_offset > 0,
            Attempt.resumed_from_step < Checkpoint.step,
        )
        .exists()
    )
    return or_(Checkpoint.removed_at.is_(None), and_(Checkpoint.damage.is_not(None), ~trained_over))
