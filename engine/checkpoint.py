"""Checkpoints: an ordinary Hugging Face folder (engine/weights.py), `trainer/` for an exact resume, `manifest.json` with sha256.

Only safetensors and JSON. Written beside, hashed, fsynced, renamed: a folder with its final name is complete.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from engine.errors import RunError, is_out_of_space
from engine.flops import FlopLedger
from engine.frozen import Frozen
from engine.health import HealthState
from engine.prefix_state import PrefixState
from engine.sentinel import SentinelState
from engine.student import Student
from engine.weights import restore_weights, save_weights

MANIFEST = "manifest.json"
_OPTIMIZER = "trainer/optimizer.safetensors"
_STATE = "trainer/state.json"
_CHECKPOINT_PATH = re.compile("attempts/(?P<attempt>[0-9]+)/checkpoints/step-(?P<step>[0-9]+)")
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class TrainerState(Frozen):
    """What a run knows besides weights and optimizer. Random numbers and the prompt order follow from seed and step."""

    step: int = 0
    """Updates done."""
    prefix: PrefixState
    health: HealthState = HealthState()
    sentinel: SentinelState = SentinelState()
    flops: FlopLedger = FlopLedger()
    """Useful FLOPs so far."""
    executed: FlopLedger = FlopLedger()
    """Executed FLOPs so far; of checkpoints from before they were told apart by phase, since that step."""
    executed_flops: float = 0.0
    """Executed FLOPs so far, all phases."""
    training_seconds: float = 0.0
    evaluated_step: int | None = None
    """Last step whose evaluation is complete; None before the baselines."""
    best_step: int | None = None
    best_score: tuple[float, float] | None = None
    """(accuracy, -reverse KL) of the best student so far; larger is better."""
    best_path: str | None = None
    """Its checkpoint, relative to the run folder."""


class ManifestFile(Frozen):
    name: str
    num_bytes: int
    sha256: str


class Manifest(Frozen):
    """What lies in a checkpoint folder."""

    format: int = 1
    step: int
    files: list[ManifestFile]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files, the manifest apart."""
        return sum(file.num_bytes for file in self.files)


def save_checkpoint(folder: Path, student: Student, state: TrainerState) -> tuple[Manifest, str]:
    """Write a checkpoint; its manifest and the manifest's sha256. Raises RunError("no_space") and leaves nothing half-made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    try:
        save_weights(staging, student.model)
        student.model.tokenizer.save_pretrained(staging)
        (staging / "trainer").mkdir()
        save_file(_optimizer_tensors(student), staging / _OPTIMIZER)
        (staging / _STATE).write_text(state.model_dump_json(indent=1))
        manifest = Manifest(step=state.step, files=[_hashed(path, staging) for path in _files(staging)])
        text = manifest.model_dump_json(indent=1)
        (staging / MANIFEST).write_text(text)
        for path in [*_files(staging), staging / "trainer", staging]:
            _fsync(path)
        if folder.exists():  # left by a resumed attempt of the same fence; the new one has the same content or newer
            shutil.rmtree(folder)
        staging.rename(folder)
        _fsync(folder.parent)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        if is_out_of_space(error):
            raise RunError(
                "no_space", f"No space left for a checkpoint in {folder.parent}; free some and resume."
            ) from error
        raise
    except SafetensorError as error:  # safetensors hides the errno of a full disk in its message
        shutil.rmtree(staging, ignore_errors=True)
        raise RunError(
            "no_space", f"A checkpoint could not be written to {folder.parent} ({error}); free space and resume."
        ) from error
    return manifest, hashlib.sha256(text.encode()).hexdigest()


def load_trainer_state(folder: Path) -> TrainerState:
    """The state in a checkpoint folder whose manifest verifies; RunError("bad_checkpoint") otherwise."""
    verify_checkpoint(folder)
    try:
        return TrainerState.model_validate_json((folder / _STATE).read_text())
    except (OSError, ValueError) as error:
        raise RunError(
            "bad_checkpoint", f"{folder} has no {_STATE} that this version reads; use another checkpoint."
        ) from error


def restore_student(folder: Path, student: Student) -> None:
    """Put weights and optimizer state of a verified checkpoint into `student`."""
    restore_weights(folder, student.model)
    saved = load_file(folder / _OPTIMIZER)
    for parameter, name in student.parameter_names.items():
        if f"step.{name}" in saved:
            moments = {moment: saved[f"{moment}.{name}"] for moment in _MOMENTS}
            student.optimizer.state[parameter] = {
                moment: tensor if moment == "step" and not parameter.is_cuda else tensor.to(parameter.device)
                for moment, tensor in moments.items()
            }


def load_weights(folder: Path, student: Student) -> None:
    """Verify a checkpoint and put its weights into the student's module; RunError("bad_checkpoint") if they do not fit."""
    verify_checkpoint(folder)
    restore_weights(folder, student.model)


def verify_checkpoint(folder: Path) -> Manifest:
    """The manifest, when every file has the size and sha256 that it states; RunError("bad_checkpoint") otherwise."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise RunError(
            "bad_checkpoint",
            f"{folder} has no readable {MANIFEST} ({error.__class__.__name__}); use another checkpoint.",
        ) from error
    for file in manifest.files:
        path = folder / file.name
        is_inside = path.resolve().is_relative_to(folder.resolve())
        if not is_inside or not path.is_file() or _hashed(path, folder) != file:
            raise RunError("bad_checkpoint", f"{path} differs from its manifest; use another checkpoint.")
    return manifest


def newest_checkpoint(run_folder: Path) -> Path | None:
    """The verified checkpoint with the most steps of any attempt, None when there is none; corrupt ones are passed over."""
    matches = [
        (match, folder)
        for folder in run_folder.glob("attempts/*/checkpoints/step-*")
        if (match := _CHECKPOINT_PATH.fullmatch(folder.relative_to(run_folder).as_posix()))
    ]
    for _, folder in sorted(matches, key=lambda m: (int(m[0]["step"]), int(m[0]["attempt"])), reverse=True):
        try:
            verify_checkpoint(folder)
        except RunError:
            continue
        return folder
    return None


def _optimizer_tensors(student: Student) -> dict[str, torch.Tensor]:
    return {
        f"{moment}.{name}": student.optimizer.state[parameter][moment].detach().clone().contiguous().cpu()
        for parameter, name in student.parameter_names.items()
        if parameter in student.optimizer.state
        for moment in _MOMENTS
    }


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _hashed(path: Path, folder: Path) -> ManifestFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ManifestFile(name=path.relative_to(folder).as_posix(), num_bytes=path.stat().st_size, sha256=digest)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
