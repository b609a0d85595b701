"""Anchoring: which rollouts leave the prefix schedule, run to the full length and are trained whole (ours).

A prefix alone can empty the tail of a small student while its loss falls; some full-length rollouts keep it. They are
chosen by step and place in the batch alone, so a resumed run anchors the same ones. It imports without torch.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from engine.frozen import Frozen


class NoAnchoring(Frozen):
    """No rollout leaves the prefix schedule."""

    kind: Literal["none"] = "none"

    def anchored_at(self, step: int, num_prompts: int) -> list[bool]:
        """For each prompt of a step, whether its rollouts are anchored: none."""
        return [False] * num_prompts

    def num_anchored(self, step: int, num_prompts: int) -> int:
        """How many prompts of a step are anchored."""
        return 0

    def counts(self, start: int, end: int, num_prompts: int) -> dict[int, int]:
        """How many of the steps from `start` to `end`, that one left out, have how many anchored prompts: the latter to the former."""
        return {0: end - start}


class EveryNthStep(Frozen):
    """Every n-th step runs and trains to the full length, so that the tail of the completion is not forgotten (ours)."""

    kind: Literal["every_nth_step"] = "every_nth_step"
    n: Annotated[int, Field(ge=1, le=100_000)] = 8
    """Steps n, 2n, 3n, … (counted from 1) run to the full completion length."""

    def anchored_at(self, step: int, num_prompts: int) -> list[bool]:
        """For each prompt of a step (counted from 0), whether its rollouts are anchored: all or none."""
        return [(step + 1) % self.n == 0] * num_prompts

    def num_anchored(self, step: int, num_prompts: int) -> int:
        """How many prompts of a step are anchored."""
        return num_prompts if (step + 1) % self.n == 0 else 0

    def counts(self, start: int, end: int, num_prompts: int) -> dict[int, int]:
        """How many of the steps from `start` to `end`, that one left out, have how many anchored prompts: the latter to the former."""
        whole = end // self.n - start // self.n
        return _positive({num_prompts: whole, 0: end - start - whole})


class FractionOfBatch(Frozen):
    """A fraction of each batch runs and trains to the full length, the rest stops at the prefix (ours).

    It costs more time than whole steps for the same tokens: one long row decodes nearly as slowly as eight.
    """

    kind: Literal["fraction"] = "fraction"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.125
    """Share of the prompts that are anchored, all rollouts of each, spread evenly; a step may have one more or less."""

    def anchored_at(self, step: int, num_prompts: int) -> list[bool]:
        """For each prompt of a step (counted from 0), whether its rollouts are anchored."""
        first = step * num_prompts
        return [self._before(draw + 1) > self._before(draw) for draw in range(first, first + num_prompts)]

    def num_anchored(self, step: int, num_prompts: int) -> int:
        """How many prompts of a step are anchored."""
        first = step * num_prompts
        return self._before(first + num_prompts) - self._before(first)

    def counts(self, start: int, end: int, num_prompts: int) -> dict[int, int]:
        """How many of the steps from `start` to `end`, that one left out, have how many anchored prompts: the latter to the former."""
        fewest = math.floor(self.share * num_prompts)
        anchored = self._before(end * num_prompts) - self._before(start * num_prompts)
        one_more = anchored - fewest * (end - start)
        return _positive({fewest: end - start - one_more, fewest + 1: one_more})

    def _before(self, draw: int) -> int:
        """Anchored prompts among the first `draw` of the run: as many as the share allows."""
        return math.floor(self.share * draw)


def _positive(counts: dict[int, int]) -> dict[int, int]:
    return {key: count for key, count in counts.items() if count}


Anchoring = Annotated[NoAnchoring | EveryNthStep | FractionOfBatch, Field(discriminator="kind")]
