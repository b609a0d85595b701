"""One token of each row, drawn by inverting the distribution function. B rows, V vocabulary, G entries of a group."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_GROUP = 256
_BELOW_ONE = 1 - 2**-52  # its product with any sum is less than the sum, also when rounded


def drawn(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids [B] for uniforms [B] in [0, 1), and their log-probabilities, from logits [B, V] (-inf: never drawn).

    A running sum over a large vocabulary would need float64 throughout, a float32 one loses the tail. So the vocabulary is
    summed in groups; float64 adds up the groups, and the tokens of the one that is hit.
    """
    largest = logits.max(-1, keepdim=True).values
    odds = (logits - largest).exp_()
    groups = functional.pad(odds, (0, -odds.shape[1] % _GROUP)).view(len(odds), -1, _GROUP)
    group, share, total = _hit(groups.sum(-1), uniforms)
    tokens = groups.gather(1, group[:, None, None].expand(-1, 1, _GROUP)).squeeze(1)
    place, _, _ = _hit(tokens, share)
    chosen = group * _GROUP + place
    logit = logits.gather(-1, chosen[:, None]) - largest
    return chosen, logit.squeeze(-1) - total.log().to(logits.dtype)


def _hit(weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For weights [B, K] the index [B] that each uniform falls on, how far into its weight (in [0, 1)), and their sum [B]."""
    cumulative = weights.double().cumsum(-1)
    total = cumulative[:, -1]
    threshold = uniforms.double().clamp(max=_BELOW_ONE) * total
    index = torch.searchsorted(
        cumulative, threshold[:, None], right=True
    )  # right: an entry without weight is never hit
    weight = weights.gather(-1, index).squeeze(-1).double()
    before = cumulative.gather(-1, index).squeeze(-1) - weight
    share = ((threshold - before) / weight).clamp(0, _BELOW_ONE)
    return index.squeeze(-1), share, total
