"""Sampling from the likely tokens only. For evaluation: in training it would bias every estimate of the reverse KL."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Truncation:
    """Which tokens may be drawn; as it stands, all of them."""

    top_k: int = 0
    """This many most likely ones; 0 keeps all."""
    top_p: float = 1.0
    """The fewest that together have at least this probability, in (0, 1] (Holtzman et al. 2020, nucleus sampling)."""
    min_p: float = 0.0
    """Those at least this many times as likely as the most likely one, in [0, 1] (Nguyen et al. 2024, arXiv 2407.01082)."""

    def __bool__(self) -> bool:
        """Whether it leaves any token out."""
        return self != EVERY_TOKEN

    def of(self, logprobs: Tensor) -> Tensor:
        """[B, V] log-probabilities renormalised over the kept tokens, -inf elsewhere.

        `top_k` first, then `top_p` of what is left, then `min_p`: the order of transformers. (vLLM takes `min_p` first,
        which differs only where `top_p` is below 1 too.) The most likely token is always kept. Of equally likely tokens
        the one with the lower id goes first.
        """
        ordered, ids = logprobs.sort(dim=-1, descending=True, stable=True)
        if self.top_k:
            ordered = ordered[:, : self.top_k]
        weights = ordered.double().softmax(-1)
        before = weights.cumsum(-1) - weights
        ordered = ordered.masked_fill(before >= self.top_p, -torch.inf)
        if self.min_p:
            ordered = ordered.masked_fill(ordered < ordered[:, :1] + math.log(self.min_p), -torch.inf)
        kept = torch.full_like(logprobs, -torch.inf).scatter(-1, ids[:, : ordered.shape[-1]], ordered)
        return torch.log_softmax(kept, -1)


EVERY_TOKEN = Truncation()
