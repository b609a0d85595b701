"""How much each token counts in the loss. n supervised tokens of one rollout.

Weights depend on their own rollout alone, so that micro-batches, padding and order change nothing, and the loss stays a
sum of weighted divergences divided by the number of supervised tokens of the global batch. Except for IW-OPD, which is
kept as published, they have mean 1 over the rollout: they move the signal within it and leave its size as it was. No
gradient flows through them. Only tensor methods are used, so that this module imports without torch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from engine.frozen import Frozen

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-12  # stands for a sum or spread of 0, below which a share means nothing


@dataclass(frozen=True)
class TokenSignals:
    """What both models thought of the n tokens of a rollout, before the gradient is taken; [n] each, in nats."""

    student_entropy: Tensor
    reverse_kl: Tensor
    """KL(student‖teacher) at each position."""
    log_ratio: Tensor
    """log teacher - log student of the token that stands there."""


class TokenWeighting(Frozen):
    """A rule for the weights of one rollout's tokens; its kinds are the union `TokenWeights`."""

    needs_signals: ClassVar[bool] = False
    """Whether both heads must be run once more, before the loss, to know the weights."""

    @abstractmethod
    def of_rollout(self, index: Tensor, signals: TokenSignals | None) -> Tensor:
        """[n] weights >= 0; `index` is 0, 1, … n-1, n >= 1. `signals` are there if `needs_signals`."""


class NoWeights(TokenWeighting):
    """Every token counts the same."""

    kind: Literal["none"] = "none"

    def of_rollout(self, index: Tensor, signals: TokenSignals | None) -> Tensor:
        """Ones."""
        return index * 0 + 1


class PositionPower(TokenWeighting):
    """Weight ∝ (relative position)^exponent; after PW-OPD (Liu et al. 2026, arXiv 2605.21606), whose function is not known to us."""

    kind: Literal["position_power"] = "position_power"
    exponent: Annotated[float, Field(ge=-4, le=4)] = 1.0
    """Above 0 later tokens count more, as in PW-OPD; below 0 earlier ones."""

    def of_rollout(self, index: Tensor, signals: TokenSignals | None) -> Tensor:
        """((t+1)/n)^exponent, with mean 1."""
        raw = ((index + 1) / len(index)) ** self.exponent
        return raw / raw.mean()


class PositionLinear(TokenWeighting):
    """Weight 1 + slope·(2x - 1) at the relative position x of a token in its rollout; the form is ours."""

    kind: Literal["position_linear"] = "position_linear"
    slope: Annotated[float, Field(ge=-1, le=1)] = 1.0
    """Above 0 later tokens count more, below 0 earlier ones; at 1 from nearly 0 to nearly 2."""

    def of_rollout(self, index: Tensor, signals: TokenSignals | None) -> Tensor:
        """With x = (t + 1/2)/n, whose mean is 1/2."""
        return 1 + self.slope * (2 * (index + 0.5) / len(index) - 1)


class TopShare(TokenWeighting):
    """Only tokens where the student is unsure or disagrees with the teacher (Xu et al. 2026, TIP, arXiv 2604.14084).

    The score is h + d - h·d of the student's entropy h and the reverse KL d, both scaled to 0..1 over the rollout (our
    reading; the paper's own scaling is not known to us).
    """

    needs_signals: ClassVar[bool] = True

    kind: Literal["tip"] = "tip"
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of each rollout's tokens that is kept, rounded up; the others carry no loss."""

    def of_rollout(self, index: Tensor, signals: TokenSignals | None) -> Tensor:
        """n/m on the m tokens of the highest score, the earlier one where two are equal; 0 on the rest."""
        assert signals is not None, "needs_signals"
        h, d = _scaled(signals.student_entropy), _scaled(signals.reverse_kl)
        kept = math.ceil(self.share * len(index))
        # h + d - h·d, written so that the tokens of largest entropy and largest divergence both score exactly 1.
        score = 1 - (1 - h) * (1 - d)
        chosen = score.sort(descending=True, stable=True).indices[:kept]
        return (index * 0).index_fill(0, chosen, len(index) / kept)


class RemainingAdvantage(TokenWeighting):
    """Tokens count more while student and teacher have not yet drifted apart (Xie et al. 2026, IW-OPD, arXiv 2606.22600)."""

    needs_signals: ClassVar[bool] = True

    kind: Literal["iw_opd"] = "iw_opd"
    gamma: Annotated[float, Field(ge=0, le=10)] = 0.5
    """What the first token gains over the last; weights run from 1 + gamma down to 1 and are not scaled to mean 1."""

    def of_rollout(self, index: Tensor, signals: TokenSignals | None) -> Tensor:
        """1 + γ·(1 - Σ_{j<t}|a_j| / Σ_j|a_j|), a_j the log-ratio of teacher and student at the token."""
        assert signals is not None, "needs_signals"
        size = signals.log_ratio.abs()
        before = size.cumsum(0) - size
        return 1 + self.gamma * (1 - before / size.sum().clamp(min=_TINY))


def _scaled(values: Tensor) -> Tensor:
    """Scaled to 0..1; all 0 where they are equal."""
    lowest = values.min()
    return (values - lowest) / (values.max() - lowest).clamp(min=_TINY)
