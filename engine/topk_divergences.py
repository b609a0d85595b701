"""Divergences that look at a few likely tokens only. N tokens, V vocabulary, S tokens of the support (K, or 2K for a union).

They follow published recipes that get no more than the top K from a served teacher. Here both models' full distributions
are at hand, so what the recipe leaves out can be measured: the probability that each model keeps inside the support.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from engine.divergences import Direction, DistributionDivergence, ForwardKL, ReverseKL, TokenScores
from engine.findings import misfit

if TYPE_CHECKING:
    from torch import Tensor

_NOWHERE = (
    -1e30
)  # log-probability of what is left out: finite, since an infinite one would make 0 · ∞ in values and gradients
MAX_K = 4096


class TopKKL(DistributionDivergence):
    """KL over the K most likely tokens; the rest is one more outcome, or is left out and both sides are renormalised."""

    measure_names: ClassVar[tuple[str, ...]] = ("kept_mass_student", "kept_mass_teacher")

    kind: Literal["top_k_kl"] = "top_k_kl"
    k: Annotated[int, Field(ge=1, le=MAX_K)] = 32
    """Tokens taken from each model whose support it is; at most the vocabulary, where it becomes the full divergence."""
    support: Literal["teacher", "student", "union"] = "teacher"
    """Whose most likely tokens count: those of the teacher, of the student, or of both."""
    rest: Literal["tail_bucket", "renormalised"] = "tail_bucket"
    """All other tokens are one outcome with their summed probability, or are dropped and both sides divided by what is kept."""
    direction: Direction = "reverse"
    """forward is KL(teacher‖student), reverse is KL(student‖teacher)."""

    @model_validator(mode="after")
    def _something_is_left_to_learn(self) -> Self:
        if self.k == 1 and self.rest == "renormalised" and self.support != "union":
            raise misfit(
                "divergence.k",
                "divergence.k is 1 but a single token renormalised has probability 1 under both models, so that nothing is "
                "learnt; raise k to at least 2 or set divergence.rest to tail_bucket.",
            )
        return self

    def between(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        """The divergence over the last axis, in nats, >= 0; with a tail bucket at most the full KL: [..., V] twice to [...]."""
        return self._between(student_logprobs, teacher_logprobs)[0]

    def measured(self, scores: TokenScores) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The divergence, and the probability that student and teacher keep inside the support, [N] each."""
        return self._between(scores.student_logprobs, scores.teacher_logprobs)

    def _between(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        ids, is_repeated = self._support(student.detach(), teacher)
        inside = [logprobs.gather(-1, ids).masked_fill(is_repeated, _NOWHERE) for logprobs in (student, teacher)]
        kept = [logprobs.logsumexp(-1, keepdim=True) for logprobs in inside]
        kl = ForwardKL() if self.direction == "forward" else ReverseKL()
        if self.rest == "renormalised":
            divergence = kl.between(*(logprobs - mass for logprobs, mass in zip(inside, kept, strict=True)))
        else:
            divergence = kl.between(*inside) + kl.between(*(log_mass_outside(each, ids) for each in (student, teacher)))
        student_mass, teacher_mass = (mass.detach().exp().squeeze(-1) for mass in kept)
        return divergence, (student_mass, teacher_mass)

    def _support(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """[..., S] token ids, and which of them stand there a second time."""
        import torch  # not at the top of the file: specs are read without it

        own = {"teacher": [teacher], "student": [student], "union": [teacher, student]}[self.support]
        tops = [logprobs.topk(self.k).indices for logprobs in own]
        is_seen = teacher.new_zeros(teacher.shape, dtype=torch.bool)
        is_repeated = []
        for ids in tops:
            is_repeated.append(is_seen.gather(-1, ids))
            is_seen.scatter_(-1, ids, True)
        return torch.cat(tops, -1), torch.cat(is_repeated, -1)


class TeacherOrder(DistributionDivergence):
    """How unlikely the student finds the order of the teacher's K most likely tokens: Plackett-Luce, by the student's odds.

    Our reading of Han et al. 2026 (Order-Only OPD, arXiv 2611.02112), whose exact loss we have not seen. No divergence in
    the strict sense: it falls on towards 0 as the student's gaps widen, and is not 0 for a student that is its teacher.
    """

    kind: Literal["teacher_order"] = "teacher_order"
    k: Annotated[int, Field(ge=2, le=MAX_K)] = 8
    """Tokens whose order counts, from the teacher's most likely one on; at most the vocabulary."""

    def between(self, student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
        """-log P(order) over the last axis, in nats, >= 0: the student draws the K tokens one by one without putting back."""
        ordered = student_logprobs.gather(-1, teacher_logprobs.topk(self.k).indices)
        left = ordered.flip(-1).logcumsumexp(-1).flip(-1)  # log of the summed odds of those not yet drawn
        return (left - ordered).sum(-1)


def log_mass_outside(logprobs: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of all tokens but `ids`, [..., V] and [..., S] to [..., 1]; about -1e30 when there are none.

    Summed outside rather than taken as log(1 - inside), which has no digits left where nearly all is inside.
    """
    return logprobs.scatter(-1, ids, _NOWHERE).logsumexp(-1, keepdim=True)
