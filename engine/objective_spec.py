"""The unions of what a run may minimise. They import without torch."""

from typing import Annotated

from pydantic import Field

from engine.divergences import JSD, ForwardKL, ReverseKL, SkewKL
from engine.policy_gradient import PolicyGradient
from engine.topk_divergences import TeacherOrder, TopKKL

Divergence = Annotated[
    ReverseKL | ForwardKL | JSD | SkewKL | TopKKL | PolicyGradient | TeacherOrder, Field(discriminator="kind")
]
