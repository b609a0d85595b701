"""Vocabulary projection and divergence in token chunks: no [B, T, V] tensor ever exists.

N supervised tokens, H hidden width, V vocabulary. The gradient with respect to hidden states and head is taken chunk by
chunk in the forward pass (as liger-kernel does for cross-entropy), so nothing is projected twice and the extra memory
does not depend on N. The matrix products are of whole chunks; between them, the objective and its gradient with respect to
the products (autograd's, of the objective's own `terms`) are taken in blocks of few tokens that stay in a core's cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.language_model import OutputHead
from engine.objective import Objective
from engine.top_tokens import TopTokens

# A chunk holds the products of both models, [chunk, V]; 2^23 entries make that 67 MB in float32, and large vocabularies
# still get enough tokens for an efficient matrix product.
_CHUNK_ENTRIES = 2**23
# Some twenty operations go over each block on a CPU. From memory, they took as long as the matrix products.
_CPU_BLOCK_ENTRIES = 2**17


@dataclass(frozen=True)
class Heads:
    """The projections of both models, one temperature for both, and one vocabulary whatever the padding of their weights."""

    student: OutputHead
    teacher: OutputHead
    temperature: float

    def student_logprobs(self, hidden: Tensor) -> Tensor:
        """[N, Hs] to [N, V]."""
        return self.logprobs(self.student.logits(hidden))

    def teacher_logprobs(self, hidden: Tensor) -> Tensor:
        """[N, Ht] to [N, V]."""
        return self.logprobs(self.teacher.logits(hidden))

    def logprobs(self, logits: Tensor) -> Tensor:
        """[N, V] at the temperature."""
        return torch.log_softmax(logits if self.temperature == 1 else logits / self.temperature, dim=-1)

    def chunks(self, num_tokens: int, bytes_per_entry: int = 4) -> Iterator[slice]:
        """The tokens whose logits are alive at once: more where an entry takes less than four bytes."""
        size = chunk_tokens(self.student.vocabulary) * max(1, 4 // bytes_per_entry)
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
    taught: Tensor | TopTokens,
    target_ids: Tensor,
    *,
    heads: Heads,
    objective: Objective,
    num_supervised_tokens: int,
    weights: Tensor | None = None,
) -> FusedLoss:
    """The objective of student and teacher at N positions, [N, Hs] and [N, Ht] hidden states to FusedLoss.

    In place of the teacher's hidden states, what a served one has told of the N positions.

    `num_supervised_tokens` is that of the global batch: the micro-batches' totals add up to one mean over all tokens.
    `weights` [N] multiply the divergence of each token.
    """
    work = _Work(heads, objective, num_supervised_tokens, weights)
    head = heads.student
    total, columns = _FusedDivergence.apply(  # type: ignore[no-untyped-call]
        student_hidden, head.weight, head.bias, taught, target_ids, work
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
        taught: Tensor | TopTokens,
        target_ids: Tensor,
        work: _Work,
    ) -> tuple[Tensor, Tensor]:
        student = _Products(weight, bias, work.heads.student.vocabulary, hidden.dtype)
        teacher = _Served(taught) if isinstance(taught, TopTokens) else _States(work.heads, taught)
        # Under bf16 the products run in bf16 and the head's gradient is summed in float32.
        head_grads = [
            _blank(p, student.vocabulary if len(hidden) else 0)
            for p in (weight, bias)
            if p is not None and p.requires_grad
        ]
        hidden_grad = torch.empty_like(hidden)
        # Made beforehand: small tensors that outlive a chunk would each keep a block of its freed memory from being used again.
        dtype = torch.promote_types(torch.float32, hidden.dtype)
        columns = hidden.new_empty(4 + len(work.objective.measure_names), hidden.shape[0], dtype=dtype)
        total = columns.new_zeros(())
        for part in work.heads.chunks(hidden.shape[0], hidden.element_size()):
            products = student.of(hidden[part])
            teacher.look_at(part)
            total += _into_gradients(products, teacher, target_ids[part], columns[:, part], work, part.start)
            torch.mm(products, student.weight, out=hidden_grad[part])
            student.add_gradients(head_grads, products, hidden[part], is_first=part.start == 0)
        # Not saved for backward, which would keep them: the head's is as large as the head, and handed on as it is.
        ctx.gradients = (hidden_grad, *head_grads)
        ctx.mark_non_differentiable(columns)
        return total, columns

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "the gradients of a loss are handed on once"
        hidden_grad, *head_grads = (grad.mul_(grad_total) for grad in ctx.gradients)
        ctx.gradients = None
        weight_grad, bias_grad = [*head_grads, None, None][:2]
        return hidden_grad, weight_grad, bias_grad, None, None, None


class _Products:
    """hidden · weightᵀ + bias of one model, chunk by chunk, into memory that is asked for once."""

    def __init__(self, weight: Tensor, bias: Tensor | None, vocabulary: int, dtype: torch.dtype) -> None:
        self.weight = weight.detach()[:vocabulary].to(dtype)
        self.bias = None if bias is None else bias.detach()[:vocabulary].to(dtype)
        self.vocabulary = vocabulary
        self._room = self.weight.new_empty(0)

    def of(self, hidden: Tensor) -> Tensor:
        """[N, V]; the next call overwrites it."""
        if len(self._room) < len(hidden):
            self._room = self.weight.new_empty(len(hidden), len(self.weight))
        out, states = self._room[: len(hidden)], hidden.detach().to(self.weight.dtype)
        if self.bias is None:
            return torch.mm(states, self.weight.t(), out=out)
        return torch.addmm(self.bias, states, self.weight.t(), out=out)

    def add_gradients(self, sums: list[Tensor], gradient: Tensor, hidden: Tensor, *, is_first: bool) -> None:
        """Add the gradients of weight and bias to `sums` (either has none when it is not trained), from that of the products.

        The first one overwrites what is there: filling the head's gradient with zeros takes as long as a tenth of the loss.
        """
        for summed in sums:
            used = summed[: self.vocabulary]
            if summed.ndim == 2 and summed.dtype == gradient.dtype:
                if is_first:
                    torch.mm(gradient.t(), hidden, out=used)
                else:
                    torch.addmm(used, gradient.t(), hidden, out=used)
                continue
            one = gradient.sum(0, dtype=summed.dtype) if summed.ndim == 1 else gradient.t() @ hidden
            if is_first:
                used.copy_(one)
            else:
                used += one


class _States:
    """The teacher's log-probabilities from its hidden states [N, Ht], chunk by chunk."""

    def __init__(self, heads: Heads, hidden: Tensor) -> None:
        head = heads.teacher
        self._heads, self._hidden = heads, hidden
        self._products = _Products(head.weight, head.bias, head.vocabulary, head.weight.dtype)

    def look_at(self, part: slice) -> None:
        """Make the products of a chunk; they overwrite those of the chunk before."""
        self._chunk = self._products.of(self._hidden[part])

    def logprobs(self, rows: slice, student_logprobs: Tensor) -> Tensor:
        """[n, V] at some rows of the chunk."""
        return self._heads.logprobs(self._heads.teacher.shaped(self._chunk[rows]))


class _Served:
    """The log-probabilities of a teacher that has told of its likeliest tokens, chunk by chunk."""

    def __init__(self, told: TopTokens) -> None:
        self._told = told

    def look_at(self, part: slice) -> None:
        """Go on to a chunk."""
        self._chunk = self._told[part]

    def logprobs(self, rows: slice, student_logprobs: Tensor) -> Tensor:
        """[n, V] at some rows of the chunk, beside the student's own."""
        return self._chunk[rows].filled(student_logprobs)


def _blank(parameter: Tensor, vocabulary: int) -> Tensor:
    """Memory for the gradient of a head's parameter; only what no product reaches, behind `vocabulary`, is filled."""
    gradient = torch.empty_like(parameter)
    gradient[vocabulary:] = 0
    return gradient


def _into_gradients(
    products: Tensor, teacher: _States | _Served, target_ids: Tensor, columns: Tensor, work: _Work, start: int
) -> Tensor:
    """The chunk's share of the loss. `products` [N, V] become their own gradient, and `columns` [M, N] are filled.

    `teacher` looks at the chunk, `start` is its first token.
    """
    heads, objective = work.heads, work.objective
    total = columns.new_zeros(())
    for rows in _blocks(products):
        leaf = products[rows].detach().requires_grad_()
        with torch.enable_grad():
            student = heads.logprobs(heads.student.shaped(leaf))
            theirs = teacher.logprobs(rows, student)
            weights = None if work.weights is None else work.weights[start + rows.start : start + rows.stop]
            terms = objective.terms(student, theirs, target_ids[rows], weights)
            loss = terms.loss.sum() / work.num_supervised_tokens
        (gradient,) = torch.autograd.grad(loss, [leaf])
        products[rows] = gradient
        total += loss.detach()
        student = student.detach()
        shown = (terms.divergence, entropy(student), entropy(theirs), picked(student, target_ids[rows]))
        for column, values in zip(columns, (*shown, *terms.measures), strict=True):
            column[rows] = values
    return total


def _blocks(products: Tensor) -> Iterator[slice]:
    """Rows of [N, V] that are worked on together."""
    num_rows, vocabulary = products.shape
    size = num_rows if products.is_cuda else max(1, _CPU_BLOCK_ENTRIES // vocabulary)
    return (slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size))


def entropy(logprobs: Tensor) -> Tensor:
    """Entropy over the last axis, in nats: [N, V] to [N]."""
    return -(logprobs.exp() * logprobs).sum(-1)


def picked(logprobs: Tensor, ids: Tensor) -> Tensor:
    """The log-probabilities of `ids` [N], [N, V] to [N]."""
    return logprobs.gather(-1, ids[:, None]).squeeze(-1)
