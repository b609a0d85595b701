"""The checkpoint that the next attempt of a run starts from."""

import logging
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select, update

from backend.artifact_store import ArtifactStore
from backend.artifacts import Artifact
from backend.database import Database, now_of
from backend.queries.claims import Claim, Ending, hold
from backend.queries.resumable import may_be_whole
from backend.queries.transitions import add_event
from backend.records import Attempt, Checkpoint
from engine.manifest import Expected, readable_damage_of, spec_sha256

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


class FolderUnreachable(Exception):
    """Whether a checkpoint is whole cannot be seen: its disk is not mounted, or does not answer."""

    def __init__(self, folder: Path, what: str) -> None:
        self.message = (
            f"The folder {folder} of the run's checkpoints cannot be read: {what}. Mount its disk on the worker, or make it "
            "readable."
        )
        super().__init__(self.message)

    @property
    def ending(self) -> Ending:
        """How the attempt ends: nothing is held against a checkpoint that could not be looked at."""
        return Ending("queued", self.message, failure_kind="store_unavailable", failure_message=self.message)


def resume_checkpoint(
    database: Database, claim: Claim, store: ArtifactStore, on_chunk: Callable[[], None]
) -> Path | None:
    """The newest committed checkpoint that is whole, relative to the run's folder; None when none was ever committed.

    It is on this machine's disk then, and so is the run's best one, which its report opens. Damaged ones are taken out of the list, with a
    note in the run's history; one that was repaired since comes back. Raises NoCheckpointLeft when all are, FolderUnreachable and
    StoreProblem.
    """
    with database.read() as session:
        newest_first = session.scalars(
            select(Checkpoint)
            .where(
                Checkpoint.run_id == claim.run_id,
                may_be_whole(),
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
        found_damaged = set(session.scalars(damaged))
    spec = spec_sha256(claim.spec)
    for checkpoint in newest_first:
        artifact = artifact_of(checkpoint)
        expected = Expected(
            step=checkpoint.step,
            attempt=checkpoint.fence,
            spec_sha256=spec,
            manifest_sha256=checkpoint.manifest_sha256,
        )
        damage = store.fetch(artifact, on_chunk) or _damage_here(store, artifact, expected, on_chunk)
        if damage is None:
            for best in (one for one in newest_first if one.is_best and one.id != checkpoint.id):
                store.fetch(artifact_of(best), on_chunk)
            _note_resume(database, claim, checkpoint)
            return Path("attempts", str(checkpoint.fence), checkpoint.path)
        if checkpoint.id not in found_damaged:
            _note_damage(database, claim, checkpoint, damage)
            found_damaged.add(checkpoint.id)
    if found_damaged:
        raise NoCheckpointLeft(len(found_damaged))
    return None


def _damage_here(
    store: ArtifactStore, artifact: Artifact, expected: Expected, on_chunk: Callable[[], None]
) -> str | None:
    folder = store.local(artifact)
    attempt_folder = store.run_dir / artifact.above
    if not attempt_folder.is_dir():
        raise FolderUnreachable(attempt_folder, "it is not there")
    try:
        return readable_damage_of(folder, expected, on_chunk)
    except OSError as error:
        raise FolderUnreachable(folder, str(error.strerror)) from error


def artifact_of(checkpoint: Checkpoint) -> Artifact:
    """Where a recorded checkpoint is."""
    return Artifact(checkpoint.run_id, checkpoint.fence, checkpoint.path, checkpoint.manifest_sha256)


def _note_resume(database: Database, claim: Claim, checkpoint: Checkpoint) -> None:
    with database.write() as session:
        hold(session, claim.run_id, claim.fence)
        if checkpoint.damage is not None:  # it was repaired
            back = update(Checkpoint).where(Checkpoint.id == checkpoint.id).values(removed_at=None, damage=None)
            session.execute(back)
        session.execute(
            update(Attempt)
            .where(Attempt.run_id == claim.run_id, Attempt.fence == claim.fence)
            .values(resume_checkpoint_id=checkpoint.id)
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
