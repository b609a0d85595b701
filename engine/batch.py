"""Rollouts as tensors. The only place that knows the one-token shift: the hidden state at position p predicts token p+1.

B rollouts, S sequence positions (prompt and completion, padded on the right), N supervised tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.rollout import Rollout

# Tokens that a CPU core reads together: more make no product faster, leave its cache, and pad short rollouts to long ones.
_CPU_TOKENS = 2048
# What a pass costs whatever it reads, in tokens: dispatch, and gradients that are added to those of all weights.
_CPU_TOKENS_OF_A_PASS = 64


@dataclass(frozen=True)
class RolloutBatch:
    """A micro-batch. Padding stands on the right, so that causal attention never sees it and no mask is needed."""

    token_ids: Tensor
    """[B, S]"""
    hidden_index: Tensor
    """[N] index into the flattened [B·S] hidden states of the position that predicts each supervised token."""
    target_ids: Tensor
    """[N] the supervised tokens."""
    position: Tensor
    """[N] completion position of each, from 0."""
    row: Tensor
    """[N] rollout of each, in the order given."""
    num_real_tokens: int
    """Tokens that are not padding."""

    @classmethod
    def collate(cls, rollouts: list[Rollout], pad_token_id: int, device: torch.device) -> RolloutBatch:
        """The tokens at `Rollout.supervised` are: all of a completion as a rule, also of one cut at the horizon; never the prompt."""
        sequences = [rollout.prompt_token_ids + rollout.completion_token_ids for rollout in rollouts]
        width = max(len(sequence) for sequence in sequences)
        token_ids = torch.full((len(rollouts), width), pad_token_id)
        hidden_index, target_ids, position, row = [], [], [], []
        for i, (rollout, sequence) in enumerate(zip(rollouts, sequences, strict=True)):
            token_ids[i, : len(sequence)] = torch.tensor(sequence)
            supervised = torch.tensor(rollout.supervised, dtype=torch.long)
            # The first completion token is predicted by the last prompt token, hence the -1.
            hidden_index.append(i * width + len(rollout.prompt_token_ids) - 1 + supervised)
            target_ids.append(torch.tensor(rollout.completion_token_ids)[supervised])
            position.append(supervised)
            row.append(torch.full_like(supervised, i))
        return cls(
            token_ids=token_ids.to(device),
            hidden_index=torch.cat(hidden_index).to(device),
            target_ids=torch.cat(target_ids).to(device),
            position=torch.cat(position),
            row=torch.cat(row),
            num_real_tokens=sum(map(len, sequences)),
        )


def micro_batches(rollouts: list[Rollout], size: int, device: torch.device) -> list[list[Rollout]]:
    """Rollouts sorted by length and cut into micro-batches of at most `size`: on a CPU where that costs least, see `_cheapest`."""
    ordered = sorted(rollouts, key=num_tokens)
    if device.type == "cpu":
        ends = _cheapest([num_tokens(rollout) for rollout in ordered], size)
    else:
        ends = [min(start + size, len(ordered)) for start in range(0, len(ordered), size)]
    return [ordered[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _cheapest(lengths: list[int], size: int) -> list[int]:
    """Where to cut sorted lengths so that tokens with padding, and what each micro-batch costs beside them, are fewest.

    No micro-batch has more than `size` rollouts, nor more than `_CPU_TOKENS` tokens unless it is a single rollout.
    """
    costs, starts = [0], [0]
    for end, width in enumerate(lengths, start=1):
        most = min(size, max(1, _CPU_TOKENS // width), end)
        cost, rows = min(
            (costs[end - rows] + rows * width + _CPU_TOKENS_OF_A_PASS, rows) for rows in range(1, most + 1)
        )
        costs.append(cost)
        starts.append(end - rows)
    ends = [len(lengths)] if lengths else []
    while ends and starts[ends[0]]:
        ends.insert(0, starts[ends[0]])
    return ends


def num_tokens(rollout: Rollout) -> int:
    """Of prompt and completion."""
    return len(rollout.prompt_token_ids) + len(rollout.completion_token_ids)
