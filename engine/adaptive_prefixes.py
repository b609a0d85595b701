"""Prefix schedules that grow by what training shows. They import without torch.

Each starts at `start_tokens` and adds `increment_tokens` when its condition holds; it never shrinks. All that it remembers
is in PrefixState, and so in every checkpoint.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engine.frozen import Count, Frozen
from engine.prefix_state import Growth, PrefixSignals, PrefixState, Tokens

Share = Annotated[float, Field(ge=0, le=1)]
Smoothing = Annotated[float, Field(ge=0, lt=1)]
_ROUNDING_NATS = 1e-9  # so little divergence is none; a later one divided by it may be no number any more


class _AdaptivePrefix(Frozen):
    """What all of them share: where they start, how they grow and where they end."""

    start_tokens: Tokens = 16
    """Prefix length in tokens until the first growth."""
    increment_tokens: Tokens = 16
    """Tokens that each growth adds."""
    cap_tokens: Tokens | None = None
    """Length at which growth ends; empty for max_completion_tokens."""

    def horizon_at(self, step: int, state: PrefixState) -> int:
        """Prefix length at this step, in tokens, as far as the state knows; `step` counts from 0."""
        reached = next((growth.tokens for growth in reversed(state.growths) if growth.step <= step), self.start_tokens)
        return min(reached, self.cap(state))

    def cap(self, state: PrefixState) -> int:
        """The longest horizon that this schedule may reach."""
        return min(self.cap_tokens or state.max_completion_tokens, state.max_completion_tokens)

    def shortest(self, state: PrefixState) -> int:
        """The shortest horizon of any step: the first."""
        return self.horizon_at(0, state)

    def parts(self) -> list[int]:
        """Steps from which on the horizon only rises: the first."""
        return [0]

    def after(self, num_growths: int, state: PrefixState) -> int:
        """The horizon after so many growths."""
        return min(self.start_tokens + self.increment_tokens * num_growths, self.cap(state))

    def grown(self, state: PrefixState, step: int) -> PrefixState:
        """The state that is longer from `step` on and has begun to watch anew; `best` stays."""
        growth = Growth(step=step, tokens=self.after(len(state.growths) + 1, state))
        return PrefixState(
            max_completion_tokens=state.max_completion_tokens, growths=(*state.growths, growth), best=state.best
        )


class PlateauPrefix(_AdaptivePrefix):
    """Grows when the divergence inside the prefix stops falling and the prefix is really used.

    Our reading of the idea of Adaptive FastOPD (arXiv 2607.29494): divergence relative to its value at the first step of
    this horizon, smoothed, has not improved for some steps; and most rollouts reach the horizon. The paper takes the
    largest of four such signals and two gates; its thresholds are not known to us.
    """

    kind: Literal["plateau"] = "plateau"
    patience_steps: Count = 10
    """Steps without improvement after which the prefix may grow."""
    min_improvement: Share = 0.02
    """Share by which the smoothed divergence must fall below its best to count as improvement."""
    min_reach_rate: Share = 0.5
    """Utilisation gate: smoothed share of rollouts that must not have ended before the horizon; 0 opens it."""
    smoothing: Smoothing = 0.9
    """Weight of the past in the moving averages; 0 takes each step as it is."""

    def advance(self, state: PrefixState, signals: PrefixSignals) -> PrefixState:
        """The state after a step; an evaluation, and a step without loss, leave it as it is."""
        loss, reached = signals.loss, signals.reach_rate
        if loss is None or reached is None or self.horizon_at(signals.step, state) >= self.cap(state):
            return state
        entry = state.at_entry or {"loss": loss}
        relative = loss / entry["loss"] if entry["loss"] > _ROUNDING_NATS else 1.0
        smoothed = _smoothed(state.smoothed, {"loss": relative, "reach_rate": reached}, self.smoothing)
        best = None if not state.at_entry else state.best
        has_improved = best is None or smoothed["loss"] < best * (1 - self.min_improvement)
        waited = 0 if has_improved else state.waited + 1
        if waited >= self.patience_steps and smoothed["reach_rate"] >= self.min_reach_rate:
            return self.grown(state, signals.step + 1)
        return state.model_copy(
            update={
                "at_entry": entry,
                "smoothed": smoothed,
                "best": smoothed["loss"] if has_improved else best,
                "waited": waited,
            }
        )

    def longest_at(self, step: int, state: PrefixState, evaluation_every_steps: int) -> int:
        """The longest that this step may become: the first step of a horizon sets its best, then patience runs."""
        return self.after(step // (self.patience_steps + 1), state)


class DivergenceSharePrefix(_AdaptivePrefix):
    """Grows while much of the divergence lies in the outer part of the prefix: more lies behind it, probably (ours).

    A share says nothing once hardly any divergence is left, so the prefix grows then as well.
    """

    kind: Literal["divergence_share"] = "divergence_share"
    inner_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the horizon that counts as the inner part."""
    min_share: Share = 0.4
    """Smoothed share of the divergence behind the inner part at which the prefix grows; evenly spread divergence has 1 − inner_fraction."""
    floor_nats: Annotated[float, Field(ge=0, le=100)] = 0.01
    """Smoothed mean divergence inside the prefix, in nats per token, at or below which it grows whatever the share."""
    patience_steps: Count = 10
    """Steps at each horizon before the next growth, at least."""
    smoothing: Smoothing = 0.9
    """Weight of the past in the moving averages; 0 takes each step as it is."""

    def advance(self, state: PrefixState, signals: PrefixSignals) -> PrefixState:
        """The state after a step; an evaluation, and a step without loss, leave it as it is."""
        loss = signals.loss
        if loss is None or self.horizon_at(signals.step, state) >= self.cap(state):
            return state
        share = signals.share_beyond(int(self.inner_fraction * signals.horizon))
        smoothed = _smoothed(state.smoothed, {"loss": loss, "share": share}, self.smoothing)
        waited = state.waited + 1
        wants_more = smoothed["share"] >= self.min_share or smoothed["loss"] <= self.floor_nats
        if waited >= self.patience_steps and wants_more:
            return self.grown(state, signals.step + 1)
        return state.model_copy(update={"smoothed": smoothed, "waited": waited})

    def longest_at(self, step: int, state: PrefixState, evaluation_every_steps: int) -> int:
        """The longest that this step may become: a growth each time patience is over."""
        return self.after(step // self.patience_steps, state)


class ValidationPrefix(_AdaptivePrefix):
    """Grows when full-length validation stops improving: what the prefix can teach has been learnt (ours)."""

    kind: Literal["validation"] = "validation"
    patience_evaluations: Annotated[int, Field(ge=1, le=1000)] = 2
    """Evaluations without improvement after which the prefix grows; the run evaluates every evaluation.every_steps steps."""
    min_improvement: Annotated[float, Field(ge=0, le=100)] = 0.005
    """By how much the primary figure must exceed its best to count as improvement."""

    def advance(self, state: PrefixState, signals: PrefixSignals) -> PrefixState:
        """The state after an evaluation; a step leaves it as it is."""
        score = signals.score
        if score is None or self.horizon_at(signals.step, state) >= self.cap(state):
            return state
        if state.best is None or score > state.best + self.min_improvement:
            return state.model_copy(update={"best": score, "waited": 0})
        if state.waited + 1 >= self.patience_evaluations:
            return self.grown(state, signals.step + 1)
        return state.model_copy(update={"waited": state.waited + 1})

    def longest_at(self, step: int, state: PrefixState, evaluation_every_steps: int) -> int:
        """The longest that this step may become: the first evaluation sets the best, then none improves on it."""
        num_evaluations = step // evaluation_every_steps
        return self.after(max(num_evaluations - 1, 0) // self.patience_evaluations, state)


def _smoothed(past: dict[str, float], now: dict[str, float], smoothing: float) -> dict[str, float]:
    """Exponential moving averages; the first value starts them."""
    return {name: smoothing * past.get(name, value) + (1 - smoothing) * value for name, value in now.items()}
