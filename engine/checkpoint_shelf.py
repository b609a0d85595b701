"""The checkpoints that an attempt keeps on disk: the newest few and the best."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from engine.checkpoint import TrainerState, save_checkpoint
from engine.events import CheckpointRemoved, CheckpointSaved
from engine.journal import Journal
from engine.student import Student


@dataclass
class CheckpointShelf:
    """Saves and drops the checkpoints of one attempt, and says so in its journal."""

    attempt_folder: Path
    keep_last: int
    journal: Journal
    steps: list[int] = field(default_factory=list)
    """Steps whose checkpoints are on disk, oldest first."""

    def path_of(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.attempt_folder / "checkpoints" / f"step-{step}"

    def save(self, student: Student, state: TrainerState, *, accuracy: float | None) -> None:
        """Write a checkpoint of the state's step, then drop those that are no longer kept."""
        path = self.path_of(state.step)
        manifest, digest = save_checkpoint(path, student, state, attempt=int(self.attempt_folder.name))
        self.steps.append(state.step)
        self.journal.emit(
            CheckpointSaved,
            step=state.step,
            path=path.relative_to(self.attempt_folder).as_posix(),
            manifest_sha256=digest,
            num_bytes=manifest.num_bytes,
            accuracy=accuracy,
            is_best=state.best_step == state.step,
        )
        kept = {*self.steps[-self.keep_last :], state.best_step}
        for step in [step for step in self.steps if step not in kept]:
            # Told first: a row that is gone while the folder still stands misleads nobody.
            old = self.path_of(step)
            self.journal.emit(CheckpointRemoved, step=step, path=old.relative_to(self.attempt_folder).as_posix())
            shutil.rmtree(old, ignore_errors=True)
            self.steps.remove(step)
