"""Vocabulary projection and divergence in token chunks: no [B, T, V] tensor ever exists.

N supervised tokens, H hidden width, V vocabulary. The gradient with respect to hidden states and head is taken chunk by
chunk in the forward pass (as liger-kernel does for cross-entropy), so nothing is projected twice and the extra memory
does not depend on N. The gradient itself is autograd's, of the objective's own `per_token`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.divergences import TokenScores
from engine.language_model import OutputHead
from engine.objective_spec import Divergence

# A chunk holds about six float32 tensors [chunk, V]; 2^23 entries make that 200 MB, and large vocabularies still get
# enough tokens for an efficient matrix product.
_CHUNK_ENTRIES = 2**23


@dataclass(frozen=True)
class FusedLoss:
    """What the loss of a micro-batch returns beside its gradient."""

    total: Tensor
    """Scalar with gradient: the sum of per-token divergences divided by `num_supervised_tokens`."""
    per_token: Tensor
    """[N] divergences, nats, detached."""
    student_entropy: Tensor
    """[N] nats, detached."""
    teacher_entropy: Tensor
    """[N] nats, detached."""
    student_logprob: Tensor
    """[N] log-probability of the sampled tokens, detached."""
    measures: dict[str, Tensor]
    """[N] of each of the divergence's `measure_names`, detached."""


def chunk_tokens(vocabulary: int) -> int:
    """Tokens whose logits are alive at once."""
    return max(16, _CHUNK_ENTRIES // vocabulary)


def fused_divergence(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    target_ids: Tensor,
    *,
    student_head: OutputHead,
    teacher_head: OutputHead,
    divergence: Divergence,
    temperature: float,
    num_supervised_tokens: int,
) -> FusedLoss:
    """The divergence of student and teacher at N positions, [N, Hs] and [N, Ht] hidden states to FusedLoss.

    `num_supervised_tokens` is that of the global batch: the micro-batches' totals add up to one mean over all tokens.
    Both heads have one `vocabulary`, whatever the padding of their weights.
    """
    work = _Work(student_head, teacher_head, divergence, temperature, num_supervised_tokens)
    head = student_head
    total, columns = _FusedDivergence.apply(  # type: ignore[no-untyped-call]
        student_hidden, head.weight, head.bias, teacher_hidden, target_ids, work
    )
    per_token, student_entropy, teacher_entropy, student_logprob, *measures = columns
    names = divergence.measure_names
    return FusedLoss(
        total, per_token, student_entropy, teacher_entropy, student_logprob, dict(zip(names, measures, strict=True))
    )


@dataclass(frozen=True)
class _Work:
    student_head: OutputHead
    teacher_head: OutputHead
    divergence: Divergence
    temperature: float
    num_supervised_tokens: int


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
        # Under bf16 the products run in bf16 and their gradients are summed in float32.
        leaves = [p.detach().to(hidden.dtype).requires_grad_(p.requires_grad) for p in (weight, bias) if p is not None]
        learned = [leaf for leaf in leaves if leaf.requires_grad]  # none when only an adapter is trained
        head_grads = [torch.zeros_like(p) for p in (weight, bias) if p is not None and p.requires_grad]
        hidden_grad = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.promote_types(torch.float32, hidden.dtype), device=hidden.device)
        # Made beforehand: small tensors that outlive a chunk would each keep a block of its freed memory from being used again.
        columns = total.new_empty(4 + len(work.divergence.measure_names), hidden.shape[0])
        size = chunk_tokens(work.student_head.vocabulary)
        for start in range(0, hidden.shape[0], size):
            part = slice(start, start + size)
            chunk = hidden[part].detach().requires_grad_()
            teacher = _logprobs(work.teacher_head.logits(teacher_hidden[part]), work.temperature)
            with torch.enable_grad():
                student = _logprobs(work.student_head.logits(chunk, *leaves), work.temperature)
                scores = TokenScores(student, teacher, target_ids[part])
                per_token, measures = work.divergence.measured(scores)
                loss = per_token.sum() / work.num_supervised_tokens
            hidden_grad[part], *grads = torch.autograd.grad(loss, [chunk, *learned])
            for summed, grad in zip(head_grads, grads, strict=True):
                summed += grad
            total += loss.detach()
            student = student.detach()
            columns[0, part] = per_token.detach()
            columns[1, part] = _entropy(student)
            columns[2, part] = _entropy(teacher)
            columns[3, part] = _picked(student, target_ids[part])
            for column, measure in zip(columns[4:], measures, strict=True):
                column[part] = measure
        ctx.save_for_backward(hidden_grad, *head_grads)
        ctx.mark_non_differentiable(columns)
        return total, columns

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, *head_grads = (grad * grad_total for grad in ctx.saved_tensors)
        weight_grad, bias_grad = [*head_grads, None, None][:2]
        return hidden_grad, weight_grad, bias_grad, None, None, None


def _logprobs(logits: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(logits / temperature, dim=-1)


def _entropy(logprobs: Tensor) -> Tensor:
    return -(logprobs.exp() * logprobs).sum(-1)


def _picked(logprobs: Tensor, ids: Tensor) -> Tensor:
    return logprobs.gather(-1, ids[:, None]).squeeze(-1)
