"""The checkpoint that the next attempt of a run starts from."""

import logging
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select, update

from backend.artifact_store import ArtifactStore
from backend.artifacts import Artifact
from backend.database import Database, now_of
from backend.queries.claims import Claim, Ending, hold
from backend.queries.transitions import add_event
from backend.records import Attempt, Checkpoint
from engine.manifest import Expected, damage_of, spec_sha256

_log = logging.getLogger(__name__)


class NoCheckpointLeft(Exception):
    """Every checkpoint that the run could go on from is damaged."""

    def __init__(self, num_damaged: int) -> None:
        self.message = (
            f"None of the run's checkpoints can be used: {num_damaged} of {num_damaged} are damaged, as its history says one "
            "by one. Check the disk that the run folder lies on, restore the folder from a backup or start a new run."
        )
        super().__init__(self.message)

    @property
    def ending(self) -> Ending:
        """How the attempt ends: starting over in silence would throw away what was recorded."""
        return Ending("failed", self.message, failure_kind="bad_checkpoint", failure_message=self.message)


def resume_checkpoint(
    database: Database, claim: Claim, store: ArtifactStore, on_chunk: Callable[[], None]
) -> Path | None:
    """The newest committed checkpoint that is whole, relative to the run's folder; None when none was ever committed.

    It is on this machine's disk then, and so is the run's best one, which its report opens. Damaged ones are taken out of the list, with a
    note in the run's history. Raises NoCheckpointLeft when all are, and StoreProblem.
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
        # Also those that an attempt found before it died: without them the run would start over unnoticed.
        damaged = select(Checkpoint.id).where(
            Checkpoint.run_id == claim.run_id,
            Checkpoint.damage.is_not(None),
            Checkpoint.fence >= claim.first_fence,
        )
        num_damaged = len(session.scalars(damaged).all())
    spec = spec_sha256(claim.spec)
    for checkpoint in newest_first:
        artifact = artifact_of(checkpoint)
        expected = Expected(
            step=checkpoint.step,
            attempt=checkpoint.fence,
            spec_sha256=spec,
            manifest_sha256=checkpoint.manifest_sha256,
        )
        damage = store.fetch(artifact, on_chunk) or damage_of(store.local(artifact), expected, on_chunk)
        if damage is None:
            for best in (one for one in newest_first if one.is_best and one.id != checkpoint.id):
                store.fetch(artifact_of(best), on_chunk)
            _note_resume(database, claim, checkpoint.id)
            return Path("attempts", str(checkpoint.fence), checkpoint.path)
        _note_damage(database, claim, checkpoint, damage)
        num_damaged += 1
    if num_damaged:
        raise NoCheckpointLeft(num_damaged)
    return None


def artifact_of(checkpoint: Checkpoint) -> Artifact:
    """Where a recorded checkpoint is."""
    return Artifact(checkpoint.run_id, checkpoint.fence, checkpoint.path, checkpoint.manifest_sha256)


def _note_resume(database: Database, claim: Claim, checkpoint_id: str) -> None:
    with database.write() as session:
        hold(session, claim.run_id, claim.fence)
        session.execute(
            update(Attempt)
            .where(Attempt.run_id == claim.run_id, Attempt.fence == claim.fence)
            .values(resume_checkpoint_id=checkpoint_id)
        )


def _note_damage(database: Database, claim: Claim, checkpoint: Checkpoint, damage: str) -> None:
    message = f"The checkpoint of step {checkpoint.step} is damaged: {damage}; an older one is tried."
    _log.warning("Run %s: %s", claim.run_id, message)
    with database.write() as session:
        hold(session, claim.run_id, claim.fence)
        now = now_of(session)
        session.execute(
            update(Checkpoint).where(Checkpoint.id == checkpoint.id).values(removed_at=now, damage=damage[:1000])
        )
        payload = {"code": "bad_checkpoint", "message": message}
        add_event(session, claim.run_id, "warning", payload, fence=claim.fence, time=now)
