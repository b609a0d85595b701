"""What every run of a worker shares, and the spec as an engine reads it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from backend.artifact_store import ArtifactStore, export_store
from backend.database import Database
from backend.folder_store import FolderStore
from backend.limits import Limits
from backend.queries.claims import Claim
from backend.settings import export_dir
from worker.engine_server import EngineServer
from worker.settings import WorkerSettings

_DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Workplace:
    """What every run of this worker shares."""

    database: Database
    home: Path
    run_dir: Path
    settings: WorkerSettings
    is_shutting_down: Callable[[], bool]
    limits: Limits = _DEFAULT_LIMITS
    """Of what is recorded."""
    engine_server: EngineServer | None = None
    """What engines are forked from; None starts each by itself."""
    store: ArtifactStore | None = None
    """Where the files of runs are kept; None in run_dir."""

    @property
    def artifacts(self) -> ArtifactStore:
        """Where the files of runs are kept."""
        return self.store or FolderStore(self.run_dir)

    @property
    def exports(self) -> ArtifactStore:
        """Where the files of exports are kept."""
        return export_store(self.artifacts, export_dir(self.home))


def write_spec(path: Path, claim: Claim) -> None:
    """Write a run's spec, whole or not at all. Raises OSError."""
    draft = path.with_suffix(".draft")
    with draft.open("w") as file:
        file.write(claim.spec.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
