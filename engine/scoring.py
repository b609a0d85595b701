"""What student and teacher think of given rollouts, token by token, without gradients: for evaluation and traces.

N completion tokens of a micro-batch, V vocabulary, K kept tokens, T tokens of one rollout.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.batch import RolloutBatch, micro_batches
from engine.divergences import JSD, ForwardKL, ReverseKL
from engine.fused_loss import chunk_tokens
from engine.language_model import LanguageModel
from engine.rollout import Rollout
from engine.top_tokens import TopTokens


@dataclass(frozen=True)
class TokenColumns:
    """Everything about the T completion tokens of one rollout; [T] each, float32 on the CPU, in nats."""

    rollout: Rollout
    student_logprob: Tensor
    teacher_logprob: Tensor
    reverse_kl: Tensor
    forward_kl: Tensor
    jsd: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor
    student_rank: Tensor
    teacher_rank: Tensor
    top1_agrees: Tensor
    """Whether both models find the same token most likely."""
    overlap_mass: Tensor
    """Probability that both models share: the sum over the vocabulary of the smaller of the two; 1 for equal distributions."""
    student_top: Tensor
    """[T, K] ids, most likely first."""
    teacher_top: Tensor
    candidate_ids: Tensor
    """[T, 2K+1]: the student's top K, the teacher's top K and the sampled token, with repetitions."""
    candidate_student_logprob: Tensor
    candidate_teacher_logprob: Tensor


@torch.no_grad()
def score_rollouts(
    student: LanguageModel,
    teacher: LanguageModel,
    rollouts: list[Rollout],
    *,
    temperature: float,
    top_k: int,
    micro_batch: int,
) -> list[TokenColumns]:
    """The columns of each rollout, in the order given.

    Where a served teacher has told of its likeliest tokens alone, the rest has the student's proportions, see engine/top_tokens.py.
    """
    scored: dict[int, TokenColumns] = {}
    groups = micro_batches(rollouts, micro_batch, student.device)
    told = iter(teacher.servers.read([one for group in groups for one in group])) if teacher.servers else None
    with teacher.on_device() if groups else contextlib.nullcontext(), student.on_device():
        for group in groups:
            batch = RolloutBatch.collate(group, student.pad_token_id, student.device)
            with student.autocast():
                student_hidden = student.hidden(batch.token_ids).flatten(0, 1)[batch.hidden_index]
            taught: Tensor | TopTokens
            if told is not None:
                taught = TopTokens.joined([next(told) for _ in group]).to(student.device)
            else:
                taught = teacher.hidden(batch.token_ids).flatten(0, 1)[batch.hidden_index]
            columns = _columns(student, teacher, student_hidden, taught, batch.target_ids, temperature, top_k)
            for row, rollout in enumerate(group):
                mine = batch.row == row
                scored[id(rollout)] = TokenColumns(rollout, *(column[mine] for column in columns))
    return [scored[id(rollout)] for rollout in rollouts]


def executed_scoring_flops(
    student: LanguageModel, teacher: LanguageModel, rollouts: list[Rollout], micro_batch: int
) -> float:
    """Executed FLOPs of `score_rollouts`, padding included."""
    return sum(executed_reading_flops(model, rollouts, micro_batch) for model in (student, teacher))


def executed_reading_flops(model: LanguageModel, rollouts: list[Rollout], micro_batch: int) -> float:
    """Executed FLOPs of a forward pass of one model over rollouts in micro-batches, projected where they are supervised.

    Every rank of a run does it.
    """
    total = 0.0
    for group in micro_batches(rollouts, micro_batch, model.device):
        width = max(len(r.prompt_token_ids) + len(r.completion_token_ids) for r in group)
        total += model.shape.padded_forward(len(group), width, sum(len(r.supervised) for r in group))
    return total * model.ranks.size


def _columns(
    student: LanguageModel,
    teacher: LanguageModel,
    student_hidden: Tensor,
    taught: Tensor | TopTokens,
    target_ids: Tensor,
    temperature: float,
    top_k: int,
) -> list[Tensor]:
    """All columns but the rollout, for the N tokens of a micro-batch, chunk by chunk."""
    vocabulary = student.head.vocabulary
    size = chunk_tokens(vocabulary)
    chunks = []
    for start in range(0, len(target_ids), size):
        part = slice(start, start + size)
        s = torch.log_softmax(student.head.logits(student_hidden[part]) / temperature, -1)
        at = taught[part]
        t = at.filled(s) if isinstance(at, TopTokens) else torch.log_softmax(teacher.head.logits(at) / temperature, -1)
        chunks.append([column.cpu() for column in _chunk_columns(s, t, target_ids[part], min(top_k, vocabulary))])
    return [torch.cat(column) for column in zip(*chunks, strict=True)]


def _chunk_columns(s: Tensor, t: Tensor, ids: Tensor, top_k: int) -> list[Tensor]:
    """`s`, `t` [N, V] log-probabilities of student and teacher, `ids` [N]."""
    s_picked, t_picked = s.gather(-1, ids[:, None]), t.gather(-1, ids[:, None])
    s_top, t_top = s.topk(top_k).indices, t.topk(top_k).indices
    candidates = torch.cat([s_top, t_top, ids[:, None]], dim=-1)
    return [
        s_picked.squeeze(-1),
        t_picked.squeeze(-1),
        ReverseKL().between(s, t),
        ForwardKL().between(s, t),
        JSD(beta=0.5).between(s, t),
        -(s.exp() * s).sum(-1),
        -(t.exp() * t).sum(-1),
        (s > s_picked).sum(-1) + 1,
        (t > t_picked).sum(-1) + 1,
        s_top[:, 0] == t_top[:, 0],
        torch.minimum(s, t).exp().sum(-1),
        s_top,
        t_top,
        candidates,
        s.gather(-1, candidates),
        t.gather(-1, candidates),
    ]
