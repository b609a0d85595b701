"""Everything that is to be in an installation's store, for a move of it."""

from typing import NamedTuple

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from backend.artifacts import Artifact, StoredFile
from backend.prompt_file_records import PromptFile
from backend.records import Checkpoint, Rollout


class Stored(NamedTuple):
    """What a store must have."""

    artifact: Artifact
    num_bytes: int
    """Of a checkpoint; 0 for traces, whose size no row tells."""
    files: tuple[StoredFile, ...] = ()
    """Of a checkpoint, its manifest apart."""


def uploads_stored(session: Session) -> list[str]:
    """The sha256 of every file of prompts that somebody uploaded."""
    query = select(PromptFile.sha256).distinct().order_by(PromptFile.sha256)
    return list(session.scalars(query))


def everything_stored(session: Session) -> list[Stored]:
    """Checkpoints that are in the list or pinned, oldest first, then the files of token traces."""
    kept = select(Checkpoint).where(or_(Checkpoint.removed_at.is_(None), Checkpoint.pinned)).order_by(Checkpoint.id)
    checkpoints = [
        Stored(
            Artifact(row.run_id, row.fence, row.path, row.manifest_sha256),
            row.num_bytes,
            tuple(StoredFile(file["name"], file["num_bytes"], file["sha256"]) for file in row.files),
        )
        for row in session.scalars(kept)
    ]
    place = (Rollout.run_id, Rollout.fence, Rollout.path)
    traces = session.execute(select(*place).distinct().order_by(*place))
    return checkpoints + [Stored(Artifact(run_id, fence, path), 0) for run_id, fence, path in traces]
