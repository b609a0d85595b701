"""How the student's weights are updated. It imports without torch."""

import math
from typing import Annotated, Literal

from pydantic import Field

from engine.frozen import Frozen


class ConstantWithDecay(Frozen):
    """The peak rate throughout, and a linear fall to zero over the last `optimizer.decay_fraction` of the steps."""

    kind: Literal["constant_with_decay"] = "constant_with_decay"

    def share_at(self, step: int, num_steps: int, *, warmup_steps: int, decay_fraction: float) -> float:
        """Share of the peak rate at a step counted from 0, warm-up apart, in (0, 1]; zero lies behind the last step."""
        decay_steps = round(decay_fraction * num_steps)
        return min(1.0, (num_steps - step) / decay_steps) if decay_steps else 1.0


class CosineDecay(Frozen):
    """Half a cosine from the peak, at the end of the warm-up, to its smallest value behind the last step (Loshchilov 2017)."""

    kind: Literal["cosine"] = "cosine"
    min_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the peak rate at which the fall ends."""

    def share_at(self, step: int, num_steps: int, *, warmup_steps: int, decay_fraction: float) -> float:
        """Share of the peak rate at a step counted from 0, warm-up apart, in [min_share, 1]."""
        progress = max(0, step - warmup_steps) / max(1, num_steps - warmup_steps)
        return self.min_share + (1 - self.min_share) * 0.5 * (1 + math.cos(math.pi * progress))


RateSchedule = Annotated[ConstantWithDecay | CosineDecay, Field(discriminator="kind")]


class OptimizerSpec(Frozen):
    """AdamW with a linear warm-up of its learning rate, a schedule behind it and a limit on the gradient."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Peak learning rate."""
    schedule: RateSchedule = ConstantWithDecay()
    """How the learning rate goes on after its warm-up."""
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 5
    """Steps in which the learning rate rises linearly to its peak."""
    decay_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of all steps, at the end, in which the learning rate falls linearly to zero; 0 keeps it constant."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of AdamW's first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of AdamW's second moment."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """AdamW's denominator constant; 1e-4 kept tiny students from drifting on tokens that the prefix never shows."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """The gradient is scaled down to this norm when it is larger."""

    def warmup_share_at(self, step: int) -> float:
        """Share of a peak rate that the warm-up allows at a step counted from 0, in (0, 1]."""
        return min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0

    def learning_rate_at(self, step: int, num_steps: int) -> float:
        """Learning rate of a step counted from 0 in a run of `num_steps`."""
        share = self.schedule.share_at(
            step, num_steps, warmup_steps=self.warmup_steps, decay_fraction=self.decay_fraction
        )
        return self.learning_rate * self.warmup_share_at(step) * share
