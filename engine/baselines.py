"""Baselines that need not be measured twice: base student and teacher on the same prompts, whatever the arm.

Kept as JSON under INCIPIT_HOME/cache/baselines, named by a hash of everything that the figures depend on: the models'
files, the prompts, the lengths and the seed. Arms of one experiment share them, and so does the next run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from importlib.metadata import version
from pathlib import Path

import torch

from engine.evaluate import EncodedPrompt, Evaluation
from engine.flops import FlopLedger
from engine.frozen import Frozen
from engine.language_model import LanguageModel
from engine.locations import incipit_home
from engine.spec import RunSpec

_log = logging.getLogger("engine")


class CachedBaseline(Frozen):
    """An evaluation without its token columns."""

    metrics: dict[str, float | None]
    position_reverse_kl: list[float]
    position_p90: list[float]
    position_teacher_entropy: list[float]
    position_count: list[int]


class BaselineCache:
    """The baselines that this machine has measured for a pair of models under a spec."""

    def __init__(self, spec: RunSpec, student: LanguageModel, teacher: LanguageModel) -> None:
        settings = {
            "versions": [version(name) for name in ("incipit", "torch", "transformers")],
            "device": student.device.type,
            "precision": str(student.autocast_dtype),
            "models": [_weights_digest(model) for model in (student, teacher)],
            "seed": spec.seed,
            "temperature": spec.sampling.temperature,
            "max_completion_tokens": spec.max_completion_tokens,
            "loss_region": spec.loss_region.model_dump(),
            "num_sampled": spec.evaluation.num_sampled,
            "scorer": spec.evaluation.scorer.model_dump(),
        }
        self._settings = json.dumps(settings, sort_keys=True)
        self._folder = incipit_home() / "cache" / "baselines"

    def find(self, subject: str, prompts: list[EncodedPrompt], horizon: int) -> Evaluation | None:
        """The evaluation of this subject on these prompts, None when it was never measured here."""
        try:
            text = self._path(subject, prompts, horizon).read_text()
            cached = CachedBaseline.model_validate_json(text)
        except (OSError, ValueError):  # absent, or half-written by a machine that lost power: measure again
            return None
        return Evaluation(**cached.model_dump(), sampled=[], flops=FlopLedger())

    def keep(self, subject: str, prompts: list[EncodedPrompt], horizon: int, evaluation: Evaluation) -> None:
        """Store an evaluation for the next run; a cache that cannot be written costs time, not the run."""
        path = self._path(subject, prompts, horizon)
        names = CachedBaseline.model_fields
        cached = CachedBaseline(**{name: getattr(evaluation, name) for name in names})
        staged = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            staged.write_text(cached.model_dump_json())
            staged.replace(path)
        except OSError as error:
            _log.warning("The baseline could not be kept in %s: %s", path.parent, error)

    def _path(self, subject: str, prompts: list[EncodedPrompt], horizon: int) -> Path:
        # The teacher's own figures have no inside and beyond.
        parts = [self._settings, subject, str(horizon if subject == "base" else 0)]
        parts += [json.dumps([p.token_ids, p.row.answer, p.row.completion]) for p in prompts]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return self._folder / f"{digest}.json"


def _weights_digest(model: LanguageModel) -> str:
    """sha256 over names, dtypes, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
