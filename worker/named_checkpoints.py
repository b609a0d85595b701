"""Brings the checkpoints of other runs that a spec names, as `home:runs/…`, to this machine's disk."""

import re
from collections.abc import Callable

from pydantic import BaseModel
from sqlalchemy import select

from backend.artifact_store import ArtifactStore
from backend.artifacts import Artifact
from backend.database import Database
from backend.records import Checkpoint

_NAMED = re.compile(r'"home:runs/(?P<run>[^/"]+)/attempts/(?P<fence>[0-9]{1,18})/(?P<path>checkpoints/[^/"]+)/?"')


def fetch_named(database: Database, store: ArtifactStore, spec: BaseModel, on_chunk: Callable[[], None]) -> None:
    """Fetch what is in the list of checkpoints; of the others the engine says that they are not there. Raises StoreProblem, OSError."""
    if not store.is_remote:
        return
    for named in set(_NAMED.findall(spec.model_dump_json())):
        run_id, fence, path = named
        same = (Checkpoint.run_id == run_id, Checkpoint.fence == int(fence), Checkpoint.path == path)
        with database.read() as session:
            found = session.scalar(select(Checkpoint.manifest_sha256).where(*same, Checkpoint.removed_at.is_(None)))
        if found is not None:
            store.fetch(Artifact(run_id, int(fence), path, found), on_chunk)
