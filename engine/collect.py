"""The rollouts of one step: which prompts, who writes the completions, how long they become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.evaluate import EncodedPrompt
from engine.flops import FlopLedger, rollout_flops
from engine.language_model import LanguageModel
from engine.loss_region import LossRegion
from engine.prompts import prompts_of_step
from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from engine.spec import RunSpec


@dataclass(frozen=True)
class StepRollouts:
    """What a step trains on, and what it cost to get it."""

    rollouts: list[Rollout]
    flops: FlopLedger
    """Useful FLOPs."""
    wasted_flops: float
    """FLOPs spent on padding and on rows that had ended."""


def collect_rollouts(
    spec: RunSpec,
    student: LanguageModel,
    prompts: list[EncodedPrompt],
    *,
    step: int,
    horizons: list[int],
    on_token: Callable[[], None],
) -> StepRollouts:
    """The rollouts of `step` (counted from 0); `horizons` has the tokens that those of each prompt may have."""
    first = step * spec.prompts_per_step
    drawn = prompts_of_step(len(prompts), spec.seed, step, spec.prompts_per_step)
    requests = [
        # Visit 0 belongs to evaluation; a step may reach into the next epochs and visit a prompt again.
        RolloutRequest(index, prompts[index].token_ids, spec.rollouts_per_prompt, 1 + draw // len(prompts), limit)
        for draw, (index, limit) in enumerate(zip(drawn, horizons, strict=True), first)
    ]
    sampler = Sampler(student, spec.seed, spec.sampling.temperature, on_token)
    flops, positions, n = 0.0, 0, spec.rollouts_per_prompt
    regions = [region for region in spec.regions_at(step) for _ in range(n)]
    rollouts = [_supervised(*pair) for pair in zip(sampler.sample(requests, max(horizons)), regions, strict=True)]
    for i, request in enumerate(requests):
        lengths = [len(rollout.completion_token_ids) for rollout in rollouts[i * n : (i + 1) * n]]
        flops += rollout_flops(student.shape, len(request.prompt_token_ids), lengths)
        positions += len(request.prompt_token_ids) + sum(lengths) - n
    wasted = 2.0 * student.shape.block_parameters * max(sampler.executed_tokens - positions, 0)
    return StepRollouts(rollouts, FlopLedger(rollout=flops), wasted)


def _supervised(rollout: Rollout, region: LossRegion) -> Rollout:
    """The rollout, with loss where the region lies."""
    span = region.span(len(rollout.completion_token_ids))
    return replace(rollout, supervised_start=span.start, supervised_end=span.stop)
