"""Sampling from the likely tokens only. For evaluation: in training it would bias every estimate of the reverse KL."""

import torch
from torch import Tensor


def truncated(logprobs: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """[B, V] log-probabilities renormalised over the kept tokens, -inf elsewhere.

    First the `top_k` most likely (0: all), then of these the fewest that together have at least `top_p` of their
    probability (Holtzman et al. 2020, nucleus sampling); the most likely token is always kept. Of equally likely tokens
    the one with the lower id goes first.
    """
    ordered, ids = logprobs.sort(dim=-1, descending=True, stable=True)
    if top_k:
        ordered = ordered[:, :top_k]
    weights = ordered.double().softmax(-1)
    before = weights.cumsum(-1) - weights
    ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    kept = torch.full_like(logprobs, -torch.inf).scatter(-1, ids[:, : ordered.shape[-1]], ordered)
    return torch.log_softmax(kept, -1)
