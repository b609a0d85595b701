"""The checkpoints of an attempt on disk: saved when there is room, dropped as the spec says when no supervisor does it."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

from engine.checkpoint import TrainerState, WholeState, save_checkpoint
from engine.disk_space import ADVICE, MAX_REFUSALS, estimated_bytes, mebibytes, shortage
from engine.errors import RunError
from engine.events import CheckpointRemoved, CheckpointSaved, Warned
from engine.journal import Journal
from engine.retention import Kept, dropped
from engine.spec import CheckpointSpec
from engine.student import Student


@dataclass
class CheckpointShelf:
    """Saves and drops the checkpoints of one attempt, and says so in its journal."""

    attempt_folder: Path
    spec: CheckpointSpec | None
    """Which checkpoints stay; None leaves dropping to a supervisor."""
    journal: Journal
    scores: dict[int, tuple[float, float] | None] = field(default_factory=dict)
    """Steps whose checkpoints are on disk, each with its evaluation."""
    refused_steps: list[int] = field(default_factory=list)
    """Steps that there was no room for since the last checkpoint."""
    num_bytes: int | None = None
    """Size of the last checkpoint."""

    def path_of(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.attempt_folder / "checkpoints" / f"step-{step}"

    @property
    def steps(self) -> list[int]:
        """Steps whose checkpoints were written and not dropped."""
        return list(self.scores)

    def save(
        self,
        student: Student,
        state: TrainerState,
        accuracy: float | None,
        score: tuple[float, float] | None,
        *,
        is_last: bool,
        whole: WholeState | None = None,
    ) -> bool:
        """Write a checkpoint of the state's step, then drop those that are no longer kept; False when there is no room.

        `whole` is the state of a sharded student.

        Raises RunError("disk_full") at the third step in a row without room, and at once when `is_last`.
        """
        if state.step in self.refused_steps and not is_last:
            return False
        num_bytes = estimated_bytes(student) if self.num_bytes is None else self.num_bytes
        missing = shortage(self.attempt_folder, num_bytes)
        if missing is not None:
            self._refuse(state.step, missing.message, is_last, missing.free_bytes, missing.needed_bytes)
            return False
        path, began = self.path_of(state.step), time.monotonic()
        try:
            manifest, digest = save_checkpoint(path, student, state, attempt=int(self.attempt_folder.name), whole=whole)
        except RunError as error:
            if error.failure != "disk_full":
                raise
            self._refuse(state.step, f"{error.message}, it needs about {mebibytes(num_bytes)}", is_last)
            return False
        self.refused_steps.clear()
        self.num_bytes = manifest.num_bytes
        self.scores[state.step] = score
        self.journal.emit(
            CheckpointSaved,
            step=state.step,
            path=path.relative_to(self.attempt_folder).as_posix(),
            manifest_sha256=digest,
            num_bytes=manifest.num_bytes,
            accuracy=accuracy,
            is_best=state.best_step == state.step,
            best_path=state.best_path,
            seconds=time.monotonic() - began,
        )
        if self.spec is not None:
            self._drop(self.spec, state)
        return True

    def _refuse(
        self, step: int, reason: str, is_last: bool, free_bytes: int | None = None, needed_bytes: int | None = None
    ) -> None:
        """Note a checkpoint that is left out. Raises RunError when the run must not go on without it."""
        self.refused_steps.append(step)
        told = f"{reason}; the checkpoint of step {step} is left out and the older ones are kept."
        self.journal.emit(
            Warned, code="disk_space", message=told, step=step, value=free_bytes, limit=needed_bytes, advice=ADVICE
        )
        num_refused = len(self.refused_steps)
        if is_last or num_refused >= MAX_REFUSALS:
            which = "the last checkpoint" if is_last else f"{num_refused} checkpoints in a row"
            raise RunError("disk_full", f"{reason}, so that {which} could not be written. {ADVICE}")

    def _drop(self, spec: CheckpointSpec, state: TrainerState) -> None:
        attempt = int(self.attempt_folder.name)
        on_disk = [
            Kept(step=step, attempt=attempt, score=score, is_best=step == state.best_step)
            for step, score in self.scores.items()
        ]
        for one in dropped(on_disk, spec):
            # Told first: a row that is gone while the folder still stands misleads nobody.
            old = self.path_of(one.step)
            self.journal.emit(CheckpointRemoved, step=one.step, path=old.relative_to(self.attempt_folder).as_posix())
            shutil.rmtree(old, ignore_errors=True)
            del self.scores[one.step]
