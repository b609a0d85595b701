"""What a prefix schedule knows and what it is told. It imports without torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engine.frozen import Frozen

# Above any context window in use; it keeps a mistyped length from becoming an endless rollout.
MAX_TOKENS = 131_072

Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]


class Growth(Frozen):
    """A horizon that an adaptive schedule has reached."""

    step: int
    """The first step that runs at it, counted from 0."""
    tokens: Tokens


class PrefixState(Frozen):
    """What a schedule knows besides the step. It is part of every checkpoint; schedules that follow the step alone leave it as it is."""

    max_completion_tokens: Tokens
    """The full completion length of the run, in tokens; no horizon exceeds it."""
    growths: tuple[Growth, ...] = ()
    """The horizons that an adaptive schedule has reached, oldest first: the horizon of any past step can be looked up."""
    waited: int = 0
    """Steps or evaluations that have passed without what the schedule waits for, since the last growth at most."""
    best: float | None = None
    """The best value since the last growth (plateau), or of the run (validation)."""
    at_entry: dict[str, float] = {}
    """Values of the signals at the first step of the present horizon."""
    smoothed: dict[str, float] = {}
    """Moving averages of the signals at the present horizon."""


class PrefixSignals(Frozen):
    """What a finished step, or the evaluation behind it, tells a schedule. None where it does not exist."""

    step: int
    """The step that has just ended, counted from 0."""
    horizon: int = 1
    """The schedule's horizon at that step, anchoring left out; the signals below look no farther."""
    position_loss: tuple[float, ...] = ()
    """Mean divergence by completion position inside the horizon, nats; 0 where nothing is supervised."""
    position_count: tuple[int, ...] = ()
    """Supervised rollouts behind each mean."""
    reach_rate: float | None = None
    """Share of the step's rollouts that had not ended before the horizon."""
    score: float | None = None
    """The primary figure of a full-length evaluation, larger is better; only an evaluation has it, and nothing else."""

    @classmethod
    def of_step(
        cls,
        step: int,
        horizon: int,
        *,
        ends: list[int | None],
        position_loss: list[float],
        position_count: list[int],
    ) -> PrefixSignals:
        """The signals of a step at the schedule's `horizon`, whatever window or anchors did to its rollouts.

        `ends` has the length of each rollout that ended by itself and None for one that was cut.
        """
        return cls(
            step=step,
            horizon=horizon,
            position_loss=tuple(position_loss[:horizon]),
            position_count=tuple(position_count[:horizon]),
            reach_rate=sum(end is None or end > horizon for end in ends) / len(ends),
        )

    @property
    def loss(self) -> float | None:
        """Mean divergence of the supervised tokens inside the horizon, nats; None when there are none."""
        count = sum(self.position_count)
        return self._total(0) / count if count else None

    def share_beyond(self, position: int) -> float:
        """Share of the divergence inside the horizon that lies at `position` or behind it; 0 when there is none."""
        total = self._total(0)
        return self._total(position) / total if total > 0 else 0.0

    def _total(self, start: int) -> float:
        return sum(
            loss * count for loss, count in zip(self.position_loss[start:], self.position_count[start:], strict=True)
        )
