"""Baselines that need not be measured twice: base student and teacher on the same prompts, whatever the arm.

Kept as JSON under INCIPIT_HOME/cache/baselines, named by a hash of everything that the figures depend on: the models'
files, what ends a text, the prompts, the lengths and the seed. Arms of one experiment share them, and so does the next run.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version

import torch

from engine.evaluate import PAIR_METRICS, Evaluation, Evaluator
from engine.flops import FlopLedger
from engine.frozen import Frozen
from engine.json_cache import JsonCache
from engine.language_model import LanguageModel
from engine.spec import RunSpec
from engine.verdicts import Verdicts


class CachedBaseline(Frozen):
    """An evaluation without its token columns."""

    metrics: dict[str, float | None]
    position_reverse_kl: list[float]
    position_p90: list[float]
    position_teacher_entropy: list[float]
    position_count: list[int]
    verdicts: Verdicts | None = None


class BaselineCache:
    """The baselines that this machine has measured for a pair of models under a spec."""

    def __init__(self, spec: RunSpec, student: LanguageModel, teacher: LanguageModel) -> None:
        settings = {
            "versions": [version(name) for name in ("incipit", "torch", "transformers")],
            "device": student.device.type,
            "precision": str(student.autocast_dtype),
            "models": [weights_digest(model) for model in (student, teacher)],
            # Of generation_config.json and the tokenizers: they can be corrected while all weights stay.
            "eos_token_ids": [sorted(model.eos_token_ids) for model in (student, teacher)],
            "vocabulary": student.head.vocabulary,
            "metrics": PAIR_METRICS,
            "seed": spec.seed,
            "temperature": spec.sampling.temperature,
            "max_completion_tokens": spec.max_completion_tokens,
            "loss_region": spec.loss_region.model_dump(),
            "num_sampled": spec.evaluation.num_sampled,
            "num_teacher_texts": spec.evaluation.num_teacher_texts,
            "samples_per_prompt": spec.evaluation.samples_per_prompt,
            "answer_sampling": spec.evaluation.answer_sampling.model_dump(),
        }
        self._settings = json.dumps(settings, sort_keys=True)
        self._cache = JsonCache("baselines", CachedBaseline)

    def find(self, subject: str, evaluator: Evaluator, horizon: int) -> Evaluation | None:
        """The evaluation of this subject on these prompts, None when it was never measured here."""
        cached = self._cache.find(self._parts(subject, evaluator, horizon))
        if cached is None:
            return None
        figures = {name: getattr(cached, name) for name in CachedBaseline.model_fields}
        return Evaluation(**figures, sampled=[], flops=FlopLedger(), executed=FlopLedger())

    def keep(self, subject: str, evaluator: Evaluator, horizon: int, evaluation: Evaluation) -> None:
        """Store an evaluation for the next run."""
        figures = {name: getattr(evaluation, name) for name in CachedBaseline.model_fields}
        self._cache.keep(self._parts(subject, evaluator, horizon), CachedBaseline(**figures))

    def _parts(self, subject: str, evaluator: Evaluator, horizon: int) -> list[str]:
        # The teacher's own figures have no inside and beyond.
        parts = [self._settings, subject, str(horizon if subject == "base" else 0)]
        # The prompt's text too: it names the problems of the verdicts.
        parts.append(evaluator.scorer.model_dump_json())
        rows = [(prompt.token_ids, prompt.row) for prompt in evaluator.prompts]
        return parts + [json.dumps([ids, row.prompt, row.answer, row.completion, row.entry]) for ids, row in rows]


def weights_digest(model: LanguageModel) -> str:
    """sha256 over names, dtypes, shapes and bytes of all weights; of a served teacher what its servers answer to a fixed text."""
    if model.servers is not None:
        return model.servers.name
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
