"""Prefix-probe selection: decode all candidates a little, score their beginnings, continue the best (PG-OPD, 2606.21994).

T probe tokens of a candidate, K most likely tokens, N probe tokens of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.batch import RolloutBatch, micro_batches
from engine.flops import FlopLedger
from engine.fused_loss import chunk_tokens
from engine.language_model import LanguageModel
from engine.rollout import Rollout, RolloutRequest
from engine.sampler import Sampler
from engine.selection_spec import ProbeSelection


@dataclass(frozen=True)
class Candidates:
    """The candidates of a step and the choice among them."""

    groups: list[list[Rollout]]
    """By request: the kept ones to the horizon, the dropped ones as far as their probe."""
    kept: list[list[bool]]
    """Which of them are trained on."""
    metrics: dict[str, float | None]
    """probe_overlap_kept, probe_overlap_dropped (mean shares of the top k), kept_share; none where nothing was probed."""
    flops: FlopLedger
    """Of scoring the probes."""
    executed: FlopLedger
    """Of scoring the probes, padding included."""

    @classmethod
    def all_kept(cls, groups: list[list[Rollout]]) -> Candidates:
        """Rollouts that are all trained on; nothing was scored."""
        return cls(groups, [[True] * len(group) for group in groups], {}, FlopLedger(), FlopLedger())

    @property
    def kept_groups(self) -> list[list[Rollout]]:
        """Those that are trained on, by request."""
        return [
            [rollout for rollout, is_kept in zip(group, flags, strict=True) if is_kept]
            for group, flags in zip(self.groups, self.kept, strict=True)
        ]


def probed_candidates(
    selection: ProbeSelection,
    sampler: Sampler,
    teacher: LanguageModel,
    requests: list[RolloutRequest],
    horizon: int,
    *,
    micro_batch: int,
) -> Candidates:
    """Decode, score, choose, continue. The continuation goes on in the probes' own cache: no token is run twice."""
    probe = sampler.probe(requests, horizon, num_tokens=selection.probe_tokens, top_k=selection.top_k)
    candidates = [rollout for group in probe.rollouts for rollout in group]
    student_top = [top for group in probe.top_ids for top in group]
    scores, scoring = _overlaps(teacher, candidates, student_top, micro_batch)
    remaining = iter(scores)
    kept = selection.kept([[next(remaining) for _ in group] for group in probe.rollouts])
    flops = FlopLedger()
    for request, group in zip(requests, probe.rollouts, strict=True):
        lengths = [len(rollout.completion_token_ids) for rollout in group]
        flops += selection.scoring_ledger(teacher.shape, len(request.prompt_token_ids), lengths)
    return Candidates(
        groups=probe.finish(kept),
        kept=kept,
        metrics=_metrics(scores, [flag for flags in kept for flag in flags]),
        flops=flops,
        executed=FlopLedger(teacher=scoring),
    )


@torch.inference_mode()
def _overlaps(
    teacher: LanguageModel, candidates: list[Rollout], student_top: list[Tensor], micro_batch: int
) -> tuple[list[float], float]:
    """Mean share of the student's top K ids [T, K] that are among the teacher's, for each candidate; and executed FLOPs."""
    top_of = {id(rollout): top for rollout, top in zip(candidates, student_top, strict=True)}
    found: dict[int, float] = {}
    executed = 0.0
    with teacher.on_device():
        for group in micro_batches(candidates, micro_batch, teacher.device):
            batch = RolloutBatch.collate(group, teacher.pad_token_id, teacher.device)
            hidden = teacher.hidden(batch.token_ids).flatten(0, 1)[batch.hidden_index]
            mine = torch.cat([top_of[id(rollout)] for rollout in group]).to(hidden.device)
            num_shared = _num_shared(teacher, hidden, mine).cpu()
            for row, rollout in enumerate(group):
                # Of whole numbers, so that equal overlaps are equal whatever the order of their tokens.
                num_asked = len(top_of[id(rollout)]) * mine.shape[1]
                found[id(rollout)] = int(num_shared[batch.row == row].sum()) / num_asked
            executed += teacher.shape.padded_forward(len(group), batch.token_ids.shape[1], len(batch.target_ids))
    return [found[id(rollout)] for rollout in candidates], executed


def _num_shared(teacher: LanguageModel, hidden: Tensor, student_top: Tensor) -> Tensor:
    """[N] how many of the ids [N, K] that are among the teacher's K most likely behind hidden states [N, H]."""
    counts = []
    size, top_k = chunk_tokens(teacher.head.vocabulary), student_top.shape[1]
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        theirs = teacher.head.logits(hidden[part]).topk(top_k).indices
        counts.append((student_top[part, :, None] == theirs[:, None, :]).any(-1).sum(-1))
    return torch.cat(counts)


def _metrics(scores: list[float], kept: list[bool]) -> dict[str, float | None]:
    best = [score for score, flag in zip(scores, kept, strict=True) if flag]
    rest = [score for score, flag in zip(scores, kept, strict=True) if not flag]
    return {
        "probe_overlap_kept": sum(best) / len(best),
        "probe_overlap_dropped": sum(rest) / len(rest) if rest else None,
        "kept_share": len(best) / len(scores),
    }
