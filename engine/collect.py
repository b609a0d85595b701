"""The rollouts of one step: which prompts, who writes the completions, how long they become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.evaluate import EncodedPrompt
from engine.flops import FlopLedger
from engine.language_model import LanguageModel
from engine.loss_region import LossRegion
from engine.prompts import prompts_of_step
from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from engine.selection import Candidates, probed_candidates
from engine.selection_spec import ProbeSelection
from engine.sources import Writers
from engine.spec import RunSpec
from engine.vllm_sampler import RolloutServers, VllmSampler


@dataclass(frozen=True)
class StepRollouts:
    """What a step trains on, and what it cost to get it."""

    rollouts: list[Rollout]
    flops: FlopLedger
    """Useful FLOPs."""
    executed: FlopLedger
    """FLOPs of all that was computed, padding and rows that had ended included."""
    metrics: dict[str, float | None]
    """What selection and servers have to tell of the step."""


def collect_rollouts(
    spec: RunSpec,
    student: LanguageModel,
    teacher: LanguageModel,
    prompts: list[EncodedPrompt],
    *,
    step: int,
    horizons: list[int],
    on_token: Callable[[], None],
    servers: RolloutServers | None = None,
) -> StepRollouts:
    """The rollouts of `step` (counted from 0); `horizons` has the tokens that those of each prompt may have.

    What the student writes is sampled on `servers`, where there are any.
    """
    first = step * spec.prompts_per_step
    drawn = prompts_of_step(len(prompts), spec.seed, step, spec.prompts_per_step)
    requests = [
        # Visit 0 belongs to evaluation; a step may reach into the next epochs and visit a prompt again.
        RolloutRequest(index, prompts[index].token_ids, spec.rollouts_per_prompt, 1 + draw // len(prompts), limit)
        for draw, (index, limit) in enumerate(zip(drawn, horizons, strict=True), first)
    ]
    source = spec.completions.source_at(spec.seed, step)
    writers = Writers.of(
        student, teacher, prompts, seed=spec.seed, temperature=spec.sampling.temperature, on_token=on_token
    )
    if servers is not None:
        writers.student = servers.sampler(student, step, spec.seed, spec.sampling.temperature, on_token)
    if isinstance(spec.selection, ProbeSelection):
        assert isinstance(writers.student, Sampler), "a rule refuses probes on servers"
        candidates = probed_candidates(
            spec.selection, writers.student, teacher, requests, max(horizons), micro_batch=spec.usual_micro_batch
        )
    else:
        candidates = Candidates.all_kept(writers.write(source, requests, max(horizons)))
    flops = candidates.flops
    for request, group in zip(requests, candidates.groups, strict=True):
        lengths = [len(rollout.completion_token_ids) for rollout in group]
        flops += source.sampling_ledger(student.shape, teacher.shape, len(request.prompt_token_ids), lengths)
    kept = zip(candidates.kept_groups, spec.regions_at(step), strict=True)
    return StepRollouts(
        rollouts=[_supervised(rollout, region) for group, region in kept for rollout in group],
        flops=flops,
        executed=writers.executed + candidates.executed,
        metrics=candidates.metrics | (writers.student.metrics if isinstance(writers.student, VllmSampler) else {}),
    )


def _supervised(rollout: Rollout, region: LossRegion) -> Rollout:
    """The rollout, with loss where the region lies, and its source allows it."""
    span = region.span(len(rollout.completion_token_ids))
    return replace(rollout, supervised_start=max(span.start, rollout.supervised_start), supervised_end=span.stop)
