"""Texts that the teacher wrote once, on which every student of a run is measured: forward KL where accuracy is near zero."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from engine.baselines import weights_digest
from engine.flops import FlopLedger
from engine.frozen import Frozen
from engine.json_cache import JsonCache
from engine.language_model import LanguageModel
from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from engine.spec import RunSpec

if TYPE_CHECKING:
    from engine.evaluate import EncodedPrompt


class _Text(Frozen):
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["eos", "length"]


class _Texts(Frozen):
    texts: list[_Text]


def teacher_texts(
    spec: RunSpec, teacher: LanguageModel, prompts: Sequence[EncodedPrompt], on_token: Callable[[], None]
) -> tuple[list[Rollout], FlopLedger]:
    """One full-length sample of the teacher for each of the first `num_teacher_texts` prompts; executed FLOPs, 0 when kept from before.

    They are drawn at the training temperature from the evaluation's random numbers, so they are the same in every run.
    """
    asked = prompts[: spec.evaluation.num_teacher_texts]
    if not asked:
        return [], FlopLedger()
    # Of several processes one alone might find a record, and no longer sample with the others.
    if teacher.ranks.size > 1:
        return _sampled(spec, teacher, asked, on_token)
    cache = JsonCache("teacher-texts", _Texts)
    parts = [
        *(version(name) for name in ("incipit", "torch", "transformers")),
        f"{teacher.device.type} {teacher.module.dtype} {weights_digest(teacher)} {sorted(teacher.eos_token_ids)}",
        f"{spec.seed} {spec.sampling.temperature} {spec.max_completion_tokens} {teacher.head.vocabulary}",
        *(json.dumps(prompt.token_ids) for prompt in asked),
    ]
    known = cache.find(parts)
    if known is not None and len(known.texts) == len(asked):
        return [
            Rollout(index, prompt.token_ids, text.token_ids, text.logprobs, text.finish_reason, author="teacher")
            for index, (prompt, text) in enumerate(zip(asked, known.texts, strict=True))
        ], FlopLedger()
    rollouts, executed = _sampled(spec, teacher, asked, on_token)
    texts = [
        _Text(token_ids=r.completion_token_ids, logprobs=r.completion_logprobs, finish_reason=r.finish_reason)
        for r in rollouts
    ]
    cache.keep(parts, _Texts(texts=texts))
    return rollouts, executed


def _sampled(
    spec: RunSpec, teacher: LanguageModel, asked: Sequence[EncodedPrompt], on_token: Callable[[], None]
) -> tuple[list[Rollout], FlopLedger]:
    requests = [RolloutRequest(index, prompt.token_ids, 1, 0) for index, prompt in enumerate(asked)]
    sampler = Sampler(teacher, spec.seed, spec.sampling.temperature, on_token)
    rollouts = [replace(one, author="teacher") for one in sampler.sample(requests, spec.max_completion_tokens)]
    return rollouts, sampler.executed.as_evaluation()
