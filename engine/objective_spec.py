"""The unions of what a run may minimise. They import without torch."""

from typing import Annotated

from pydantic import Field

from engine.divergences import JSD, ForwardKL, ReverseKL, SkewKL
from engine.policy_gradient import PolicyGradient
from engine.termination_guard import ForwardKLGuard, NoGuard
from engine.token_weights import NoWeights, PositionLinear, PositionPower, RemainingAdvantage, TopShare
from engine.topk_divergences import TeacherOrder, TopKKL

Divergence = Annotated[
    ReverseKL | ForwardKL | JSD | SkewKL | TopKKL | PolicyGradient | TeacherOrder, Field(discriminator="kind")
]

TokenWeights = Annotated[
    NoWeights | PositionPower | PositionLinear | TopShare | RemainingAdvantage, Field(discriminator="kind")
]

TerminationGuard = Annotated[NoGuard | ForwardKLGuard, Field(discriminator="kind")]
