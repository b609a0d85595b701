"""Vocabulary projection and cross-entropy in token chunks, as engine/fused_loss.py does it for divergences.

N supervised tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.fused_loss import chunk_tokens
from engine.language_model import OutputHead


@dataclass(frozen=True)
class FusedCrossEntropy:
    """What the cross-entropy of a micro-batch returns beside its gradient."""

    total: Tensor
    """Scalar with gradient: −Σ log p(target) / `num_supervised_tokens`, nats."""
    entropy: Tensor
    """[N] entropy of the student's distributions, nats, detached."""


def fused_cross_entropy(
    hidden: Tensor, target_ids: Tensor, head: OutputHead, *, num_supervised_tokens: int
) -> FusedCrossEntropy:
    """Cross-entropy of N hidden states [N, H] with the tokens that follow them [N]; no [N, V] tensor exists.

    `num_supervised_tokens` is that of the global batch: the micro-batches' totals add up to one mean over all tokens.
    """
    total, entropy = _Function.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, target_ids, head, num_supervised_tokens
    )
    return FusedCrossEntropy(total, entropy)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_ids: Tensor,
        head: OutputHead,
        num_supervised_tokens: int,
    ) -> tuple[Tensor, Tensor]:
        leaves = [p.detach().to(hidden.dtype).requires_grad_(p.requires_grad) for p in (weight, bias) if p is not None]
        learned = [leaf for leaf in leaves if leaf.requires_grad]  # none when only an adapter is trained
        head_grads = [torch.zeros_like(p) for p in (weight, bias) if p is not None and p.requires_grad]
        hidden_grad = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.promote_types(torch.float32, hidden.dtype), device=hidden.device)
        entropy = total.new_empty(hidden.shape[0])
        size = chunk_tokens(head.vocabulary)
        for start in range(0, hidden.shape[0], size):
            part = slice(start, start + size)
            chunk = hidden[part].detach().requires_grad_()
            with torch.enable_grad():
                logprobs = torch.log_softmax(head.logits(chunk, *leaves), dim=-1)
                loss = -logprobs.gather(-1, target_ids[part, None]).sum() / num_supervised_tokens
            hidden_grad[part], *grads = torch.autograd.grad(loss, [chunk, *learned])
            for summed, grad in zip(head_grads, grads, strict=True):
                summed += grad
            total += loss.detach()
            entropy[part] = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
        ctx.save_for_backward(hidden_grad, *head_grads)
        ctx.mark_non_differentiable(entropy)
        return total, entropy

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, *head_grads = (grad * grad_total for grad in ctx.saved_tensors)
        weight_grad, bias_grad = [*head_grads, None, None][:2]
        return hidden_grad, weight_grad, bias_grad, None, None, None
