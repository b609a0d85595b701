"""Pins: a pinned checkpoint stays, whatever the run's spec says about keeping it."""

from backend.dependencies import Id, Store, errors
from backend.locked_route import locked_router
from backend.problems import not_found
from backend.queries import checkpoints as queries
from backend.queries.retention import set_pinned
from backend.schemas import Checkpoint

router = locked_router(prefix="/checkpoints", tags=["checkpoints"])


@router.post("/{checkpoint_id}/pin", operation_id="pin_checkpoint", responses=errors(403, 404, 413, 415))
def pin_checkpoint(checkpoint_id: Id, database: Store) -> Checkpoint:
    """Keep a checkpoint until it is unpinned."""
    return _set(checkpoint_id, database, pinned=True)


@router.post("/{checkpoint_id}/unpin", operation_id="unpin_checkpoint", responses=errors(403, 404, 413, 415))
def unpin_checkpoint(checkpoint_id: Id, database: Store) -> Checkpoint:
    """Let a checkpoint go when the run's spec does not keep it; while the run works, at its next checkpoint."""
    return _set(checkpoint_id, database, pinned=False)


def _set(checkpoint_id: str, database: Store, *, pinned: bool) -> Checkpoint:
    with database.write() as session:
        set_pinned(session, checkpoint_id, pinned=pinned)
        found = queries.checkpoint(session, checkpoint_id)
    if found is None:
        raise not_found("checkpoint", checkpoint_id)
    return found[0]
