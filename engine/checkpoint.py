"""Checkpoints: an ordinary Hugging Face folder (engine/weights.py), `trainer/` for an exact resume, `manifest.json` with sha256.

Only safetensors and JSON. Written beside, hashed, fsynced, renamed (engine/staging.py): a folder with its final name is complete.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from engine.collect import StepRollouts
from engine.disk_space import mebibytes
from engine.early_stopping import EarlyStoppingState
from engine.errors import RunError, is_out_of_space
from engine.flops import FlopLedger
from engine.frozen import Frozen
from engine.health import HealthState
from engine.manifest import MANIFEST, Expected, Manifest, damage_of, spec_sha256
from engine.memory_plan import MemoryPlan
from engine.prefix_state import PrefixState
from engine.sentinel import SentinelState
from engine.staging import put_in_place, sealed_files, staging_beside, write_synced
from engine.student import Student
from engine.weights import restore_weights, save_weights

_OPTIMIZER = "trainer/optimizer.safetensors"
_STATE = "trainer/state.json"
_CHECKPOINT_PATH = re.compile("attempts/(?P<attempt>[0-9]+)/checkpoints/step-(?P<step>[0-9]+)")
_WRITERS = ("incipit", "torch", "transformers", "safetensors")
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class TrainerState(Frozen):
    """What a run knows besides weights and optimizer. Random numbers and the prompt order follow from seed and step."""

    step: int = 0
    """Updates done."""
    prefix: PrefixState
    health: HealthState = HealthState()
    sentinel: SentinelState = SentinelState()
    early_stopping: EarlyStoppingState = EarlyStoppingState()
    flops: FlopLedger = FlopLedger()
    """Useful FLOPs so far."""
    executed: FlopLedger = FlopLedger()
    """Executed FLOPs so far; of checkpoints from before they were told apart by phase, since that step."""
    executed_flops: float = 0.0
    """Executed FLOPs so far, all phases."""
    training_seconds: float = 0.0
    plan: MemoryPlan | None = None
    """How it keeps within its memory; None before it was planned and in checkpoints of earlier versions."""
    ahead: StepRollouts | None = None
    """Under overlap, what the next step trains on: it was sampled by the student of one update before."""
    evaluated_step: int | None = None
    """Last step whose evaluation is complete; None before the baselines."""
    counted_step: int | None = None
    """Last step whose evaluation the prefix schedule and early stopping have seen; None before the first, and in old checkpoints."""
    best_step: int | None = None
    best_score: tuple[float, float] | None = None
    """(accuracy, -reverse KL) of the best student so far; larger is better."""
    best_path: str | None = None
    """Its checkpoint, relative to the run folder."""


@dataclass(frozen=True)
class WholeState:
    """What lies in parts on all ranks, brought together in the memory of rank 0's machine."""

    weights: dict[str, torch.Tensor]
    """By the architecture's own names."""
    optimizer: dict[str, torch.Tensor]


def gathered_state(student: Student) -> WholeState | None:
    """The state of a sharded student, to be asked for by all ranks, empty but on rank 0; None for one that is not sharded."""
    if student.model.shards is None:
        return None
    return WholeState(student.model.state_dict(), _optimizer_tensors(student))


def save_checkpoint(
    folder: Path, student: Student, state: TrainerState, *, attempt: int, whole: WholeState | None = None
) -> tuple[Manifest, str]:
    """Write a checkpoint, of a sharded student from its `whole` state; its manifest and the manifest's sha256.

    Raises RunError("disk_full") and leaves nothing half-made.
    """
    staging = staging_beside(folder)
    try:
        save_weights(staging, student.model, None if whole is None else whole.weights)
        student.model.tokenizer.save_pretrained(staging)
        (staging / "trainer").mkdir(mode=0o700)
        save_file(_optimizer_tensors(student) if whole is None else whole.optimizer, staging / _OPTIMIZER)
        write_synced(staging / _STATE, state.model_dump_json(indent=1).encode())
        manifest = Manifest(
            step=state.step,
            attempt=attempt,
            spec_sha256=spec_sha256(student.spec),
            versions={name: version(name) for name in _WRITERS},
            files=sealed_files(staging),
        )
        digest = write_synced(staging / MANIFEST, manifest.model_dump_json(indent=1).encode())
        put_in_place(staging, folder)
    except Exception as error:
        shutil.rmtree(staging, ignore_errors=True)
        if not is_out_of_space(error):
            raise
        free = mebibytes(shutil.disk_usage(folder.parent).free)
        raise RunError(
            "disk_full",
            f"The disk of {folder.parent} ran full while a checkpoint was written ({free} are free without it)",
        ) from error
    return manifest, digest


def load_trainer_state(folder: Path) -> TrainerState:
    """The state in a checkpoint folder whose manifest verifies; RunError("bad_checkpoint") otherwise."""
    verify_checkpoint(folder)
    try:
        return TrainerState.model_validate_json((folder / _STATE).read_text())
    except (OSError, ValueError) as error:
        raise RunError(
            "bad_checkpoint", f"{folder} has no {_STATE} that this version reads; use another checkpoint."
        ) from error


def without_lost_best(run_folder: Path, state: TrainerState) -> TrainerState:
    """The state, without its best student when that one's checkpoint is not whole any more: the report could not open it.

    The student at hand then counts as not evaluated yet, so that a run that is over has a best one again; what waits for
    evaluations has seen it all the same.
    """
    if state.best_path is None or damage_of(run_folder / state.best_path, Expected(step=state.best_step)) is None:
        return state
    counted = state.evaluated_step if state.counted_step is None else state.counted_step
    lost = {"best_step": None, "best_score": None, "best_path": None}
    return state.model_copy(update=lost | {"evaluated_step": 0, "counted_step": counted})


def restore_student(folder: Path, student: Student) -> None:
    """Put weights and optimizer state of a verified checkpoint into `student`; RunError("bad_checkpoint") if they do not fit."""
    _check_tokenizer(folder, student)
    restore_weights(folder, student.model)
    saved = load_file(folder / _OPTIMIZER)
    for parameter, name in student.parameter_names.items():
        if f"step.{name}" in saved:
            moments = {moment: saved[f"{moment}.{name}"] for moment in _MOMENTS}
            student.optimizer.state[parameter] = {
                moment: tensor if moment == "step" and not parameter.is_cuda else _placed(tensor, parameter, student)
                for moment, tensor in moments.items()
            }


def load_weights(folder: Path, student: Student) -> None:
    """Verify a checkpoint and put its weights into the student's module; RunError("bad_checkpoint") if they do not fit."""
    verify_checkpoint(folder)
    restore_weights(folder, student.model)


def verify_checkpoint(folder: Path) -> Manifest:
    """The manifest, when the folder holds the files that it states and no others; RunError("bad_checkpoint") otherwise."""
    damage = damage_of(folder, Expected())
    if damage is not None:
        raise RunError("bad_checkpoint", f"{folder} is damaged: {damage}; use another checkpoint.")
    return Manifest.model_validate_json((folder / MANIFEST).read_bytes())


def newest_checkpoint(run_folder: Path, on_damage: Callable[[str], None] = lambda message: None) -> Path | None:
    """The verified checkpoint with the most steps of any attempt; None when there is none. Damaged ones are told and passed over.

    RunError("bad_checkpoint") when all are damaged: a run that silently began again would look like one that goes on.
    """
    matches = [
        (match, folder)
        for folder in run_folder.glob("attempts/*/checkpoints/step-*")
        if (match := _CHECKPOINT_PATH.fullmatch(folder.relative_to(run_folder).as_posix()))
    ]
    for _, folder in sorted(matches, key=lambda m: (int(m[0]["step"]), int(m[0]["attempt"])), reverse=True):
        try:
            verify_checkpoint(folder)
        except RunError as error:
            on_damage(error.message)
            continue
        return folder
    if matches:
        raise RunError(
            "bad_checkpoint",
            f"No checkpoint in {run_folder} is whole, of {len(matches)}; restore one, or begin again with another --out.",
        )
    return None


def _placed(tensor: torch.Tensor, parameter: torch.Tensor, student: Student) -> torch.Tensor:
    """A number of the optimizer's state, or a moment cut as its parameter is."""
    shards = student.model.shards
    return tensor.to(parameter.device) if shards is None or not tensor.ndim else shards.part(tensor, parameter)


def _optimizer_tensors(student: Student) -> dict[str, torch.Tensor]:
    shards = student.model.shards
    if shards is not None:
        return {
            f"{moment}.{name}": shards.full(student.optimizer.state[parameter][moment]).contiguous()
            for parameter, name in student.parameter_names.items()
            if parameter in student.optimizer.state
            for moment in _MOMENTS
        }
    return {
        f"{moment}.{name}": student.optimizer.state[parameter][moment].detach().clone().contiguous().cpu()
        for parameter, name in student.parameter_names.items()
        if parameter in student.optimizer.state
        for moment in _MOMENTS
    }


def _check_tokenizer(folder: Path, student: Student) -> None:
    """RunError("bad_checkpoint") when the student's tokenizer is not the one that the checkpoint was trained with."""
    path = folder / "tokenizer.json"
    if not path.exists():  # tokenizers of sentencepiece write no such file
        return
    mine, theirs = student.model.tokenizer.get_vocab(), Tokenizer.from_file(str(path)).get_vocab()
    if mine != theirs:
        differing = sorted(token for token in mine.keys() | theirs.keys() if mine.get(token) != theirs.get(token))
        raise RunError(
            "bad_checkpoint",
            f"{folder} was trained with another tokenizer ({len(differing)} tokens differ, {differing[0]!r} is one); "
            "restore the tokenizer at student.path or start afresh.",
        )
