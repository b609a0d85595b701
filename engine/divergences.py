"""Divergences between the student's and the teacher's next-token distributions, in nats.

B rollouts, T completion tokens, V vocabulary. Each class stands in the spec as a value; its `between` is a plain
function of two log-probability tensors, [..., V] to [...]. Only tensor methods are used, so that this module imports
without torch; the fused loss differentiates `per_token` inside each token chunk, so no formula is written twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from engine.frozen import Frozen

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TokenScores:
    """What an objective may look at for a chunk of N completion tokens."""

    student_logprobs: Tensor
    """[N, V] student log-probabilities, with gradient."""
    teacher_logprobs: Tensor
    """[N, V] teacher log-probabilities, no gradient."""


class ForwardKL(Frozen):
    """KL(teacher‖student): the student is asked to cover everything that the teacher finds likely."""

    kind: Literal["forward_kl"] = "forward_kl"

    def between(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        """KL(teacher‖student) over the last axis, in nats, >= 0: [..., V] and [..., V] to [...]."""
        return (teacher_logprobs.exp() * (teacher_logprobs - student_logprobs)).sum(-1)

    def per_token(self, scores: TokenScores) -> Tensor:
        """The divergence of each token, [N], in nats."""
        return self.between(scores.student_logprobs, scores.teacher_logprobs)


class ReverseKL(Frozen):
    """KL(student‖teacher): the student is punished for what the teacher finds unlikely (the paper's objective)."""

    kind: Literal["reverse_kl"] = "reverse_kl"

    def between(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        """KL(student‖teacher) over the last axis, in nats, >= 0: [..., V] and [..., V] to [...]."""
        return (student_logprobs.exp() * (student_logprobs - teacher_logprobs)).sum(-1)

    def per_token(self, scores: TokenScores) -> Tensor:
        """The divergence of each token, [N], in nats."""
        return self.between(scores.student_logprobs, scores.teacher_logprobs)


class JSD(Frozen):
    """Generalised Jensen-Shannon divergence with m = (1-β)·student + β·teacher (Agarwal et al. 2024, GKD, eq. 1)."""

    kind: Literal["jsd"] = "jsd"
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Weight of the teacher, in the mixture and of its KL term; 0.5 is the symmetric divergence, at most log 2 nats."""

    def between(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        """β·KL(teacher‖m) + (1-β)·KL(student‖m) over the last axis, in nats: [..., V] and [..., V] to [...]."""
        mixture = (student_logprobs + math.log1p(-self.beta)).logaddexp(teacher_logprobs + math.log(self.beta))
        teacher_term = (teacher_logprobs.exp() * (teacher_logprobs - mixture)).sum(-1)
        student_term = (student_logprobs.exp() * (student_logprobs - mixture)).sum(-1)
        return self.beta * teacher_term + (1 - self.beta) * student_term

    def per_token(self, scores: TokenScores) -> Tensor:
        """The divergence of each token, [N], in nats."""
        return self.between(scores.student_logprobs, scores.teacher_logprobs)


Divergence = Annotated[ReverseKL | ForwardKL | JSD, Field(discriminator="kind")]
