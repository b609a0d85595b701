"""The weights of a micro-batch's tokens, row by row; signals in token chunks, so that no [B, T, V] tensor ever exists.

N supervised tokens, Hs and Ht hidden widths of student and teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.batch import RolloutBatch
from engine.divergences import ReverseKL
from engine.fused_loss import Heads, entropy, picked
from engine.objective import Objective
from engine.token_weights import NoWeights, TokenSignals, TokenWeighting
from engine.top_tokens import TopTokens


@torch.no_grad()
def weights_of_batch(
    weighting: TokenWeighting,
    batch: RolloutBatch,
    student_hidden: Tensor,
    taught: Tensor | TopTokens,
    *,
    heads: Heads,
    objective: Objective,
) -> Tensor | None:
    """[N] weights of the tokens of `batch`, from [N, Hs] and [N, Ht] hidden states; None when all tokens count the same."""
    if isinstance(weighting, NoWeights):
        return None
    dtype = torch.promote_types(torch.float32, student_hidden.dtype)
    weights = student_hidden.new_ones(len(batch.row), dtype=dtype)
    columns = weights.new_zeros(3, len(batch.row))
    if weighting.needs_signals:
        assert isinstance(taught, Tensor), "a rule refuses signals of a served teacher"
        for part in heads.chunks(len(batch.row)):
            logprobs = heads.student_logprobs(student_hidden[part]), heads.teacher_logprobs(taught[part])
            scores = objective.scores(*logprobs, batch.target_ids[part])
            student, teacher, ids = scores.student_logprobs, scores.teacher_logprobs, scores.token_ids
            columns[0, part] = entropy(student)
            columns[1, part] = ReverseKL().between(student, teacher)
            columns[2, part] = picked(teacher, ids) - picked(student, ids)
    for row in sorted(set(batch.row.tolist())):
        mine = (batch.row == row).nonzero().squeeze(-1).to(weights.device)
        index = torch.arange(len(mine), dtype=dtype, device=weights.device)
        signals = TokenSignals(*columns[:, mine]) if weighting.needs_signals else None
        weights[mine] = weighting.of_rollout(index, signals)
    return weights
