"""How the student's weights are updated. It imports without torch."""

from typing import Annotated

from pydantic import Field

from engine.frozen import Frozen


class OptimizerSpec(Frozen):
    """AdamW with linear warm-up and an optional linear decay at the end."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Peak learning rate."""
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
