"""A term of the loss that watches over the end of texts alone. N tokens, V vocabulary, E end-of-text ids.

A student trained on prefixes may stop ending its texts while every divergence looks well: the prefix holds few ends, and
reverse KL hardly asks a student that never stops to stop. This term asks, at every trained token, for the teacher's
probability of stopping there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from engine.divergences import ForwardKL
from engine.frozen import Frozen
from engine.topk_divergences import log_mass_outside

if TYPE_CHECKING:
    from torch import Tensor


class NoGuard(Frozen):
    """The divergence alone."""

    kind: Literal["none"] = "none"


class ForwardKLGuard(Frozen):
    """Adds weight · KL(teacher‖student) of the binary action stop or go on, at every token that carries loss (ours)."""

    kind: Literal["forward_kl"] = "forward_kl"
    weight: Annotated[float, Field(gt=0, le=100)] = 0.1
    """Factor of the term beside the divergence; token weights do not touch it."""

    def per_token(self, student_logprobs: Tensor, teacher_logprobs: Tensor, stop_ids: Tensor) -> Tensor:
        """The KL of the action at each token, without the weight, nats, >= 0: [N, V] twice and [E] to [N]."""
        pair = student_logprobs, teacher_logprobs
        ids = stop_ids.expand(len(student_logprobs), -1)
        stop = (logprobs.gather(-1, ids).logsumexp(-1, keepdim=True) for logprobs in pair)
        go_on = (log_mass_outside(logprobs, ids) for logprobs in pair)
        return ForwardKL().between(*stop) + ForwardKL().between(*go_on)
