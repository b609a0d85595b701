"""FLOPs of a run's training steps, of up to a million of them, before it starts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from engine.flops import FlopLedger, ModelShape, signal_flops, update_flops
from engine.loss_region import LossRegion, WholeRegion
from engine.spec import RunSpec
from engine.stretches import Stretch, stretches


class Batch(NamedTuple):
    """What the cost of a step depends on."""

    horizon: int
    """Of the rollouts that are not anchored."""
    num_anchored: int
    """Prompts whose rollouts run to the full length."""


class StepCosts(dict[Batch, FlopLedger]):
    """FLOPs of one step, if no rollout ends before its horizon; computed once for each kind of step."""

    def __init__(self, spec: RunSpec, student: ModelShape, teacher: ModelShape, prompt_tokens: int) -> None:
        super().__init__()
        self._spec, self._student, self._teacher, self._prompt_tokens = spec, student, teacher, prompt_tokens

    def __missing__(self, batch: Batch) -> FlopLedger:
        spec, anchored = self._spec, batch.num_anchored
        self[batch] = (
            self._of_prompt(batch.horizon, spec.loss_region) * (spec.prompts_per_step - anchored)
            + self._of_prompt(spec.max_completion_tokens, WholeRegion()) * anchored
        )
        return self[batch]

    def total(self, horizons: Sequence[Stretch], num_steps: int) -> FlopLedger:
        """FLOPs of the first `num_steps` steps."""
        cut = (Stretch(one.start, min(one.end, num_steps), one.value) for one in horizons if one.start < num_steps)
        return sum((self._of_stretch(one) for one in cut), FlopLedger())

    def steps_within_budget(self, horizons: Sequence[Stretch], warmup: FlopLedger) -> int:
        """The step with which the budget of training FLOPs is used up, counted from 1; all steps without one."""
        budget = self._spec.training_flops_budget
        if budget is None:
            return self._spec.num_distillation_steps
        spent = warmup.training
        for one in horizons:

            def after(step: int, one: Stretch = one, spent: float = spent) -> float:
                return spent + self._of_stretch(Stretch(one.start, step, one.value)).training

            if after(one.end) >= budget:
                return bisect_left(range(one.end), budget, lo=one.start + 1, key=after)
            spent = after(one.end)
        return self._spec.num_distillation_steps

    def _of_stretch(self, one: Stretch) -> FlopLedger:
        counts = self._spec.anchoring.counts(one.start, one.end, self._spec.prompts_per_step)
        return sum((self[Batch(one.value, anchored)] * count for anchored, count in counts.items()), FlopLedger())

    def _of_prompt(self, num_tokens: int, region: LossRegion) -> FlopLedger:
        each = self._spec.rollouts_per_prompt
        num_supervised = len(region.span(num_tokens))
        sampling = self._spec.selection.expected_ledger(
            self._spec.completions, (self._student, self._teacher), self._prompt_tokens, [num_tokens] * each
        )
        if not num_supervised:
            return sampling
        update = update_flops(
            self._student,
            self._teacher,
            self._prompt_tokens,
            num_tokens,
            num_supervised=num_supervised,
            recomputes_blocks=self._spec.recomputes_blocks,
        )
        if self._spec.projects_twice:
            update += signal_flops(self._student, self._teacher, num_supervised)
        return sampling + update * (self._spec.trained_rollouts_per_step / self._spec.prompts_per_step)


def horizons(spec: RunSpec) -> tuple[list[Stretch], list[Stretch]]:
    """The shortest and the longest horizon that each step may have, anchored rollouts left out."""
    state, num_steps, every = spec.prefix_state(), spec.num_distillation_steps, spec.evaluation.every_steps
    shortest = stretches(lambda step: spec.prefix_horizon_at(step, state), num_steps, spec.prefix.parts())
    longest = stretches(
        lambda step: spec.loss_region.sampled_tokens(spec.prefix.longest_at(step, state, every)),
        num_steps,
        spec.prefix.parts(),
    )
    return list(shortest), list(longest)
