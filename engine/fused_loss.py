"""Vocabulary projection and divergence in token chunks: no [B, T, V] tensor ever exists.

N supervised tokens, H hidden width, V vocabulary. The gradient with respect to hidden states and head is taken chunk by
chunk in the forward pass (as liger-kernel does for cross-entropy), so nothing is projected twice and the extra memory
does not depend on N. The gradient itself is autograd's, of the objective's own `terms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.language_model import OutputHead
from engine.objective import Objective

# A chunk holds about six float32 tensors [chunk, V]; 2^23 entries make that 200 MB, and large vocabularies still get
# enough tokens for an efficient matrix product.
_CHUNK_ENTRIES = 2**23


@dataclass(frozen=True)
class Heads:
    """The projections of both models, one temperature for both, and one vocabulary whatever the padding of their weights."""

    student: OutputHead
    teacher: OutputHead
    temperature: float

    def student_logprobs(self, hidden: Tensor, *leaves: Tensor) -> Tensor:
        """[N, Hs] to [N, V]; `leaves` stand in for weight and bias."""
        return torch.log_softmax(self.student.logits(hidden, *leaves) / self.temperature, dim=-1)

    def teacher_logprobs(self, hidden: Tensor) -> Tensor:
        """[N, Ht] to [N, V]."""
        return torch.log_softmax(self.teacher.logits(hidden) / self.temperature, dim=-1)

    def chunks(self, num_tokens: int) -> Iterator[slice]:
        """The tokens whose logits are alive at once."""
        size = chunk_tokens(self.student.vocabulary)
        return (slice(start, start + size) for start in range(0, num_tokens, size))


@dataclass(frozen=True)
class FusedLoss:
    """What the loss of a micro-batch returns beside its gradient."""

    total: Tensor
    """Scalar with gradient: the sum of the objective over all tokens divided by `num_supervised_tokens`."""
    per_token: Tensor
    """[N] divergences without weights and guard, nats, detached."""
    student_entropy: Tensor
    """[N] nats, detached."""
    teacher_entropy: Tensor
    """[N] nats, detached."""
    student_logprob: Tensor
    """[N] log-probability of the sampled tokens, detached."""
    measures: dict[str, Tensor]
    """[N] of each of the objective's `measure_names`, detached; `divergence` too where the loss is more than that."""


def chunk_tokens(vocabulary: int) -> int:
    """Tokens whose logits are alive at once."""
    return max(16, _CHUNK_ENTRIES // vocabulary)


def fused_divergence(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    target_ids: Tensor,
    *,
    heads: Heads,
    objective: Objective,
    num_supervised_tokens: int,
    weights: Tensor | None = None,
) -> FusedLoss:
    """The objective of student and teacher at N positions, [N, Hs] and [N, Ht] hidden states to FusedLoss.

    `num_supervised_tokens` is that of the global batch: the micro-batches' totals add up to one mean over all tokens.
    `weights` [N] multiply the divergence of each token.
    """
    work = _Work(heads, objective, num_supervised_tokens, weights)
    head = heads.student
    total, columns = _FusedDivergence.apply(  # type: ignore[no-untyped-call]
        student_hidden, head.weight, head.bias, teacher_hidden, target_ids, work
    )
    per_token, student_entropy, teacher_entropy, student_logprob, *rest = columns
    measures = dict(zip(objective.measure_names, rest, strict=True))
    if weights is not None or objective.guard is not None:
        measures["divergence"] = per_token
    return FusedLoss(total, per_token, student_entropy, teacher_entropy, student_logprob, measures)


@dataclass(frozen=True)
class _Work:
    heads: Heads
    objective: Objective
    num_supervised_tokens: int
    weights: Tensor | None


class _FusedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher_hidden: Tensor,
        target_ids: Tensor,
        work: _Work,
    ) -> tuple[Tensor, Tensor]:
        heads, objective = work.heads, work.objective
        # Under bf16 the products run in bf16 and their gradients are summed in float32.
        leaves = [p.detach().to(hidden.dtype).requires_grad_(p.requires_grad) for p in (weight, bias) if p is not None]
        learned = [leaf for leaf in leaves if leaf.requires_grad]  # none when only an adapter is trained
        head_grads = [torch.zeros_like(p) for p in (weight, bias) if p is not None and p.requires_grad]
        hidden_grad = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.promote_types(torch.float32, hidden.dtype), device=hidden.device)
        # Made beforehand: small tensors that outlive a chunk would each keep a block of its freed memory from being used again.
        columns = total.new_empty(4 + len(objective.measure_names), hidden.shape[0])
        for part in heads.chunks(hidden.shape[0]):
            chunk = hidden[part].detach().requires_grad_()
            teacher = heads.teacher_logprobs(teacher_hidden[part])
            with torch.enable_grad():
                student = heads.student_logprobs(chunk, *leaves)
                weights = None if work.weights is None else work.weights[part]
                terms = objective.terms(student, teacher, target_ids[part], weights)
                loss = terms.loss.sum() / work.num_supervised_tokens
            hidden_grad[part], *grads = torch.autograd.grad(loss, [chunk, *learned])
            for summed, grad in zip(head_grads, grads, strict=True):
                summed += grad
            total += loss.detach()
            student = student.detach()
            shown = (terms.divergence, entropy(student), entropy(teacher), picked(student, target_ids[part]))
            for column, values in zip(columns, (*shown, *terms.measures), strict=True):
                column[part] = values
        ctx.save_for_backward(hidden_grad, *head_grads)
        ctx.mark_non_differentiable(columns)
        return total, columns

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, *head_grads = (grad * grad_total for grad in ctx.saved_tensors)
        weight_grad, bias_grad = [*head_grads, None, None][:2]
        return hidden_grad, weight_grad, bias_grad, None, None, None


def entropy(logprobs: Tensor) -> Tensor:
    """Entropy over the last axis, in nats: [N, V] to [N]."""
    return -(logprobs.exp() * logprobs).sum(-1)


def picked(logprobs: Tensor, ids: Tensor) -> Tensor:
    """The log-probabilities of `ids` [N], [N, V] to [N]."""
    return logprobs.gather(-1, ids[:, None]).squeeze(-1)
