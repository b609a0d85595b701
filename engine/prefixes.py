"""Prefix schedules: how many completion tokens are sampled and trained on at each step.

A schedule is a value of the spec: data plus two pure functions, `horizon_at(step, state)` and `advance(state, signals)`.
The dashboard previews a schedule with the same code that the engine runs.
"""

from typing import Annotated, Literal

from pydantic import Field

from engine.frozen import Frozen

# Above any context window in use; it keeps a mistyped length from becoming an endless rollout.
MAX_TOKENS = 131_072

Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class PrefixState(Frozen):
    """What a schedule knows besides the step. It is part of every checkpoint."""

    max_completion_tokens: Tokens
    """The full completion length of the run, in tokens; no horizon exceeds it."""


class PrefixSignals(Frozen):
    """What a finished step tells a schedule."""

    step: int
    """The step that has just ended, counted from 0."""


class ConstantPrefix(Frozen):
    """Every step stops at the same length (the paper's fixed prefix, arXiv 2602.15260)."""

    kind: Literal["constant"] = "constant"
    tokens: Tokens = 64
    """Prefix length in tokens at every step."""

    def horizon_at(self, step: int, state: PrefixState) -> int:
        """Prefix length at this step, in tokens; `step` counts from 0."""
        return min(self.tokens, state.max_completion_tokens)

    def advance(self, state: PrefixState, signals: PrefixSignals) -> PrefixState:
        """The state after a step: unchanged, this schedule depends on the step alone."""
        return state


class LinearPrefix(Frozen):
    """Grows by a fixed number of tokens after each step, L <- L + increment (the paper's prefix scheduling)."""

    kind: Literal["linear"] = "linear"
    start_tokens: Tokens = 16
    """Prefix length in tokens at the first step."""
    increment_tokens: Annotated[float, Field(gt=0, le=MAX_TOKENS)] = 1.0
    """Tokens added after each step; fractions accumulate (0.5 adds one token every second step)."""

    def horizon_at(self, step: int, state: PrefixState) -> int:
        """Prefix length at this step, in tokens; `step` counts from 0."""
        return min(self.start_tokens + int(self.increment_tokens * step), state.max_completion_tokens)

    def advance(self, state: PrefixState, signals: PrefixSignals) -> PrefixState:
        """The state after a step: unchanged, this schedule depends on the step alone."""
        return state


class FullPrefix(Frozen):
    """Every step runs to the full completion length: ordinary on-policy distillation, the baseline."""

    kind: Literal["full"] = "full"

    def horizon_at(self, step: int, state: PrefixState) -> int:
        """The full completion length, in tokens, at every step."""
        return state.max_completion_tokens

    def advance(self, state: PrefixState, signals: PrefixSignals) -> PrefixState:
        """The state after a step: unchanged."""
        return state


class NoAnchoring(Frozen):
    """No step leaves the prefix schedule."""

    kind: Literal["none"] = "none"

    def horizon_at(self, step: int, horizon: int, state: PrefixState) -> int:
        """The schedule's own horizon."""
        return horizon

    def is_anchored(self, step: int) -> bool:
        """Never."""
        return False


class EveryNthStep(Frozen):
    """Every n-th step runs and trains to the full length, so that the tail of the completion is not forgotten (ours)."""

    kind: Literal["every_nth_step"] = "every_nth_step"
    n: Annotated[int, Field(ge=1, le=100_000)] = 8
    """Steps n, 2n, 3n, … (counted from 1) run to the full completion length."""

    def horizon_at(self, step: int, horizon: int, state: PrefixState) -> int:
        """The full length at an anchored step, else the schedule's horizon; `step` counts from 0."""
        return state.max_completion_tokens if self.is_anchored(step) else horizon

    def is_anchored(self, step: int) -> bool:
        """Whether this step runs to the full length; `step` counts from 0."""
        return (step + 1) % self.n == 0


PrefixSchedule = Annotated[ConstantPrefix | LinearPrefix | FullPrefix, Field(discriminator="kind")]
Anchoring = Annotated[NoAnchoring | EveryNthStep, Field(discriminator="kind")]
