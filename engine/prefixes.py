"""Prefix schedules: how many completion tokens are sampled and trained on at each step. It imports without torch.

A schedule is a value of the spec: data plus pure functions. `horizon_at(step, state)` is the length at a step, never below
1 and never above the completion length; `advance(state, signals)` is the state after a step; `longest_at` bounds what may
come, so that the dashboard can preview a schedule with the same code that the engine runs.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_right
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import Field

from engine.adaptive_prefixes import DivergenceSharePrefix, PlateauPrefix, ValidationPrefix
from engine.frozen import Count, Frozen
from engine.prefix_state import MAX_TOKENS, PrefixSignals, PrefixState, Tokens


class _FixedPrefix(Frozen):
    """A schedule that follows the step alone."""

    @abstractmethod
    def horizon_at(self, step: int, state: PrefixState) -> int:
        """Prefix length at this step, in tokens; `step` counts from 0."""

    def advance(self, state: PrefixState, signals: PrefixSignals) -> PrefixState:
        """The state after a step: unchanged, this schedule depends on the step alone."""
        return state

    def longest_at(self, step: int, state: PrefixState, evaluation_every_steps: int) -> int:
        """The longest that this step may become: what it is."""
        return self.horizon_at(step, state)

    def shortest(self, state: PrefixState) -> int:
        """The shortest horizon of any step: the first, where a schedule does not say otherwise."""
        return self.horizon_at(0, state)

    def parts(self) -> list[int]:
        """Steps from which on the horizon only rises, or only falls: the first, where a schedule does not say otherwise."""
        return [0]


class ConstantPrefix(_FixedPrefix):
    """Every step stops at the same length (the paper's fixed prefix, arXiv 2602.15260)."""

    kind: Literal["constant"] = "constant"
    tokens: Tokens = 64
    """Prefix length in tokens at every step."""

    def horizon_at(self, step: int, state: PrefixState) -> int:
        """Prefix length at this step, in tokens; `step` counts from 0."""
        return min(self.tokens, state.max_completion_tokens)


class RatioPrefix(_FixedPrefix):
    """Every step stops at the same share of the completion length, H = ρT (TOPD, arXiv 2605.31490)."""

    kind: Literal["ratio"] = "ratio"
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Prefix length as a share of max_completion_tokens, rounded, one token at least; TOPD reports 0.25 and 0.1."""

    def horizon_at(self, step: int, state: PrefixState) -> int:
        """Prefix length at this step, in tokens; `step` counts from 0."""
        return max(1, round(self.share * state.max_completion_tokens))


class FullPrefix(_FixedPrefix):
    """Every step runs to the full completion length: ordinary on-policy distillation, the baseline."""

    kind: Literal["full"] = "full"

    def horizon_at(self, step: int, state: PrefixState) -> int:
        """The full completion length, in tokens, at every step."""
        return state.max_completion_tokens


class LinearPrefix(_FixedPrefix):
    """Grows by a fixed number of tokens after each step, L <- L + increment (the paper's prefix scheduling)."""

    kind: Literal["linear"] = "linear"
    start_tokens: Tokens = 16
    """Prefix length in tokens at the first step."""
    increment_tokens: Annotated[float, Field(gt=0, le=MAX_TOKENS)] = 1.0
    """Tokens added after each step; fractions accumulate (0.5 adds one token every second step)."""
    cap_tokens: Tokens | None = None
    """Length at which growth ends; empty for max_completion_tokens."""

    def horizon_at(self, step: int, state: PrefixState) -> int:
        """Prefix length at this step, in tokens; `step` counts from 0."""
        return capped(self.start_tokens + int(self.increment_tokens * step), self.cap_tokens, state)


class StaircasePrefix(_FixedPrefix):
    """Grows in stairs, H = min(T, H₀ + ΔH·⌊k/Δk⌋) at step k counted from 0 (POPD, arXiv 2605.31490)."""

    kind: Literal["staircase"] = "staircase"
    start_tokens: Tokens = 16
    """Prefix length in tokens on the first stair, H₀; the paper's value is not known to us."""
    increment_tokens: Tokens = 16
    """Tokens added at each stair, ΔH."""
    every_steps: Count = 20
    """Steps on each stair, Δk."""
    cap_tokens: Tokens | None = None
    """Length at which growth ends, T; empty for max_completion_tokens."""

    def horizon_at(self, step: int, state: PrefixState) -> int:
        """Prefix length at this step, in tokens; `step` counts from 0."""
        return capped(self.start_tokens + self.increment_tokens * (step // self.every_steps), self.cap_tokens, state)


class CosinePrefix(_FixedPrefix):
    """Goes from one length to another along half a cosine wave, slow at both ends, and stays there (ours)."""

    kind: Literal["cosine"] = "cosine"
    start_tokens: Tokens = 16
    """Prefix length in tokens at the first step."""
    end_tokens: Tokens = 64
    """Prefix length in tokens once `over_steps` steps are done; a shorter one than the start lets the prefix shrink."""
    over_steps: Count = 100
    """Steps that the way takes."""

    def horizon_at(self, step: int, state: PrefixState) -> int:
        """Prefix length at this step, in tokens; `step` counts from 0."""
        done = (1 - math.cos(math.pi * min(step / self.over_steps, 1.0))) / 2
        return capped(round(self.start_tokens + (self.end_tokens - self.start_tokens) * done), None, state)

    def shortest(self, state: PrefixState) -> int:
        """The shorter end of the way."""
        return capped(min(self.start_tokens, self.end_tokens), None, state)


class Stage(Frozen):
    """Some steps at one prefix length."""

    steps: Count
    """Steps of this stage."""
    tokens: Tokens
    """Prefix length of each of them, in tokens."""


class StagesPrefix(_FixedPrefix):
    """Any lengths in turn, written out; the last one holds to the end of the run (ours)."""

    kind: Literal["stages"] = "stages"
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=1000)] = (
        Stage(steps=50, tokens=16),
        Stage(steps=50, tokens=64),
    )
    """Stages in their order, each with its steps and the prefix length in tokens."""

    def horizon_at(self, step: int, state: PrefixState) -> int:
        """Prefix length at this step, in tokens; `step` counts from 0."""
        ends = list(accumulate(stage.steps for stage in self.stages))
        stage = self.stages[min(bisect_right(ends, step), len(self.stages) - 1)]
        return capped(stage.tokens, None, state)

    def parts(self) -> list[int]:
        """The first step of each stage."""
        return [0, *accumulate(stage.steps for stage in self.stages[:-1])]

    def shortest(self, state: PrefixState) -> int:
        """The shortest stage."""
        return capped(min(stage.tokens for stage in self.stages), None, state)


def capped(tokens: int, cap_tokens: int | None, state: PrefixState) -> int:
    """`tokens`, at most the schedule's cap and the completion length."""
    return min(tokens, cap_tokens or tokens, state.max_completion_tokens)


PrefixSchedule = Annotated[
    ConstantPrefix
    | RatioPrefix
    | FullPrefix
    | LinearPrefix
    | StaircasePrefix
    | CosinePrefix
    | StagesPrefix
    | PlateauPrefix
    | DivergenceSharePrefix
    | ValidationPrefix,
    Field(discriminator="kind"),
]
