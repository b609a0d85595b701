"""Brings what a spec names to this machine's disk: checkpoints of other runs, as `home:runs/…`, and uploaded prompts."""

import re
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel
from sqlalchemy import select

from backend.artifact_store import ArtifactStore
from backend.artifacts import Artifact, upload_key
from backend.database import Database
from backend.exports import QueuedExport
from backend.records import Checkpoint
from engine.uploaded_prompts import upload_path

_NAMED = re.compile(r'"home:runs/(?P<run>[^/"]+)/attempts/(?P<fence>[0-9]{1,18})/(?P<path>checkpoints/[^/"]+)/?"')
_UPLOADED = re.compile(r'"upload:([0-9a-f]{64})"')


def fetch_named(
    database: Database, store: ArtifactStore, home: Path, asked: BaseModel, on_chunk: Callable[[], None]
) -> list[str]:
    """Fetch what is in the store and not here; what is damaged there, a sentence each. Of what is nowhere the engine says so.

    Raises StoreProblem, OSError.
    """
    damaged: list[str] = []
    if not store.is_remote:
        return damaged
    # An export's card tells what its run began with, which may be another run's checkpoint: it is named there, not needed.
    document = asked.model_dump_json(include={"spec": {"folder"}} if isinstance(asked, QueuedExport) else None)
    for sha256 in set(_UPLOADED.findall(document)):
        if not upload_path(home, sha256).exists():
            store.fetch_file(upload_key(sha256), upload_path(home, sha256))
    for named in set(_NAMED.findall(document)):
        run_id, fence, path = named
        same = (Checkpoint.run_id == run_id, Checkpoint.fence == int(fence), Checkpoint.path == path)
        with database.read() as session:
            found = session.scalar(select(Checkpoint.manifest_sha256).where(*same, Checkpoint.removed_at.is_(None)))
        if found is not None:
            wrong = store.fetch(Artifact(run_id, int(fence), path, found), on_chunk)
            if wrong is not None:
                damaged.append(f"{path} of run {run_id} is damaged: {wrong}; take another checkpoint.")
    return damaged
