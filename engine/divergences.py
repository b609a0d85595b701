"""Divergences between the student's and the teacher's next-token distributions over the whole vocabulary, in nats.

B rollouts, T completion tokens, N of them in a chunk, V vocabulary. Each class stands in the spec as a value; its
`between` is a plain function of two log-probability tensors, [..., V] to [...]. Only tensor methods are used, so that this
module imports without torch; the fused loss differentiates `per_token` inside each token chunk, so no formula is written
twice. No divergence has a factor of temperature²: one temperature divides both models' logits, and that is all.
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

Direction = Literal["forward", "reverse"]
"""forward is KL(teacher‖student), reverse is KL(student‖teacher)."""


@dataclass(frozen=True)
class TokenScores:
    """What an objective may look at for a chunk of N completion tokens."""

    student_logprobs: Tensor
    """[N, V] student log-probabilities, with gradient."""
    teacher_logprobs: Tensor
    """[N, V] teacher log-probabilities, no gradient."""
    token_ids: Tensor
    """[N] the tokens that stand there."""


class TokenObjective(Frozen):
    """What is minimised at each token; its kinds are the union `Divergence` in engine/objective_spec.py."""

    measure_names: ClassVar[tuple[str, ...]] = ()
    """Names of what `measured` returns beside the objective; their means over all tokens are metrics of a step."""

    @abstractmethod
    def per_token(self, scores: TokenScores) -> Tensor:
        """The objective of each token, [N], in nats, with its gradient."""

    def measured(self, scores: TokenScores) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`per_token`, and [N] of each of `measure_names` without gradient."""
        return self.per_token(scores), ()


class DistributionDivergence(TokenObjective):
    """An objective that looks at the two distributions and not at the token that was sampled."""

    @abstractmethod
    def between(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        """The divergence over the last axis, in nats: [..., V] and [..., V] to [...]."""

    def per_token(self, scores: TokenScores) -> Tensor:
        """The divergence of each token, [N], in nats."""
        return self.between(scores.student_logprobs, scores.teacher_logprobs)


class ForwardKL(DistributionDivergence):
    """KL(teacher‖student): the student is asked to cover everything that the teacher finds likely."""

    kind: Literal["forward_kl"] = "forward_kl"

    def between(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        """KL(teacher‖student) over the last axis, in nats, >= 0: [..., V] and [..., V] to [...]."""
        return (teacher_logprobs.exp() * (teacher_logprobs - student_logprobs)).sum(-1)


class ReverseKL(DistributionDivergence):
    """KL(student‖teacher): the student is punished for what the teacher finds unlikely (the paper's objective)."""

    kind: Literal["reverse_kl"] = "reverse_kl"

    def between(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        """KL(student‖teacher) over the last axis, in nats, >= 0: [..., V] and [..., V] to [...]."""
        return (student_logprobs.exp() * (student_logprobs - teacher_logprobs)).sum(-1)


class JSD(DistributionDivergence):
    """Generalised Jensen-Shannon divergence with m = (1-β)·student + β·teacher (Agarwal et al. 2024, GKD, eq. 1)."""

    kind: Literal["jsd"] = "jsd"
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Weight of the teacher, in the mixture and of its KL term; 0.5 is the symmetric divergence, at most log 2 nats."""

    def between(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        """β·KL(teacher‖m) + (1-β)·KL(student‖m) over the last axis, in nats: [..., V] and [..., V] to [...]."""
        mixture = log_mixture(teacher_logprobs, student_logprobs, self.beta)
        teacher_term = (teacher_logprobs.exp() * (teacher_logprobs - mixture)).sum(-1)
        student_term = (student_logprobs.exp() * (student_logprobs - mixture)).sum(-1)
        return self.beta * teacher_term + (1 - self.beta) * student_term


class SkewKL(DistributionDivergence):
    """KL to a mixture that holds some of its own first argument, so that it stays below log(1/α) (Ko et al. 2024, DistiLLM)."""

    kind: Literal["skew_kl"] = "skew_kl"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Weight of the first argument in the mixture; DistiLLM uses 0.1, and towards 0 it becomes the plain KL."""
    direction: Direction = "forward"
    """forward is KL(teacher‖α·teacher + (1-α)·student), reverse is KL(student‖α·student + (1-α)·teacher)."""

    def between(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        """The skew KL over the last axis, in nats, from 0 to log(1/α): [..., V] and [..., V] to [...]."""
        first, second = student_logprobs, teacher_logprobs
        if self.direction == "forward":
            first, second = second, first
        return (first.exp() * (first - log_mixture(first, second, self.alpha))).sum(-1)


def log_mixture(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """log(weight·exp(first) + (1-weight)·exp(second)), entry by entry; 0 < weight < 1."""
    return (first + math.log(weight)).logaddexp(second + math.log1p(-weight))
