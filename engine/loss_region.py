"""Where the loss applies: which tokens of a sampled completion are trained on. It imports without torch.

A region is a value of the spec with two pure methods: how far a rollout must be sampled, and which of its tokens carry
loss. Both models read everything up to the last sampled token; a region saves only the projection of what it leaves out.
"""

from typing import Annotated, Literal

from pydantic import Field

from engine.frozen import Frozen
from engine.prefix_state import MAX_TOKENS, Tokens


class WholeRegion(Frozen):
    """Every sampled token carries loss: the prefix [0, L), or the whole completion under a full prefix. Nothing is wasted."""

    kind: Literal["whole"] = "whole"

    def sampled_tokens(self, horizon: int) -> int:
        """Tokens to sample under a horizon: all of them."""
        return horizon

    def span(self, num_tokens: int) -> range:
        """Positions that carry loss in a completion of `num_tokens` sampled tokens."""
        return range(num_tokens)


class WindowRegion(Frozen):
    """Only the window [start, end) carries loss (the window ablation of arXiv 2602.15260). Sampling stops at its end.

    A late window saves no sampling and no reading, only the projection of the tokens before it.
    """

    kind: Literal["window"] = "window"
    start: Annotated[int, Field(ge=0, lt=MAX_TOKENS)] = 32
    """First completion token that carries loss, counted from 0; the tokens before it are sampled and read all the same."""
    end: Tokens = 64
    """Token behind the last that carries loss; sampling stops there, or at the horizon if that comes first."""

    def sampled_tokens(self, horizon: int) -> int:
        """Tokens to sample under a horizon: none behind the window."""
        return min(horizon, self.end)

    def span(self, num_tokens: int) -> range:
        """Positions that carry loss in a completion of `num_tokens` sampled tokens; empty when it ended before the window."""
        return range(min(self.start, num_tokens), min(self.end, num_tokens))


class SuffixRegion(Frozen):
    """Only the last tokens of what was sampled carry loss. It costs as much sampling and reading as the whole."""

    kind: Literal["suffix"] = "suffix"
    tokens: Tokens = 32
    """Tokens that carry loss, counted from the end of each completion, or from the horizon where that cut it."""

    def sampled_tokens(self, horizon: int) -> int:
        """Tokens to sample under a horizon: all, since a completion's end is known only when it is there."""
        return horizon

    def span(self, num_tokens: int) -> range:
        """Positions that carry loss in a completion of `num_tokens` sampled tokens."""
        return range(max(num_tokens - self.tokens, 0), num_tokens)


LossRegion = Annotated[WholeRegion | WindowRegion | SuffixRegion, Field(discriminator="kind")]


def nothing_supervised(step: int, horizon: int) -> str:
    """The warning of a step (counted from 1) in which no token lay where the loss applies."""
    return (
        f"Step {step} changed nothing: every completion of at most {horizon} tokens ended before loss_region begins; "
        "start the region earlier or lengthen the prefix. It is said once, later steps may be alike."
    )
