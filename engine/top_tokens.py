"""What a served teacher tells of its next-token distributions: the most likely tokens, the token that stands there, and the rest as one.

N positions, S tokens told of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# What sums of float32 probabilities can tell from none.
_LEAST_TAIL = 1e-7
_NOWHERE = -1e30  # finite, since an infinite one would make 0 · ∞


@dataclass(frozen=True)
class TopTokens:
    """Log-probabilities [N, S] of token ids [N, S], nats, float32; an id may be repeated with its log-probability."""

    ids: Tensor
    logprobs: Tensor
    log_tail: Tensor
    """[N] log-probability of all tokens that are not told of, together."""

    @classmethod
    def of(cls, told: Sequence[dict[int, float]]) -> TopTokens:
        """From the log-probability of each token id told of, one dict with one entry at least for each of N positions."""
        width = max((len(one) for one in told), default=1)
        ids = torch.zeros(len(told), width, dtype=torch.long)
        logprobs = torch.zeros(len(told), width)
        tails = torch.zeros(len(told), dtype=torch.double)
        for row, one in enumerate(told):
            first = next(iter(one))
            padded = [*one.items(), *[(first, one[first])] * (width - len(one))]
            ids[row] = torch.tensor([token_id for token_id, _ in padded])
            logprobs[row] = torch.tensor([logprob for _, logprob in padded])
            tails[row] = 1 - torch.tensor(list(one.values()), dtype=torch.double).exp().sum()
        return cls(ids, logprobs, tails.clamp(min=_LEAST_TAIL).log().float())

    @classmethod
    def joined(cls, parts: Sequence[TopTokens]) -> TopTokens:
        """All positions one after the other."""
        width = max((part.ids.shape[1] for part in parts), default=1)
        wide = [part._widened(width) for part in parts]
        if not wide:
            return cls.of([])
        return cls(
            torch.cat([one.ids for one in wide]),
            torch.cat([one.logprobs for one in wide]),
            torch.cat([one.log_tail for one in wide]),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> TopTokens:
        return TopTokens(self.ids[rows], self.logprobs[rows], self.log_tail[rows])

    def to(self, device: torch.device) -> TopTokens:
        """The same on a device."""
        return TopTokens(self.ids.to(device), self.logprobs.to(device), self.log_tail.to(device))

    @property
    def kept_mass(self) -> Tensor:
        """[N] probability of the tokens that are told of."""
        return 1 - self.log_tail.exp()

    def filled(self, student_logprobs: Tensor) -> Tensor:
        """The teacher's log-probabilities [N, V]: what it has left is shared out in the proportions of the student's [N, V].

        A divergence that depends on the ratio of both probabilities alone (all KL and JSD) is then the one with a single outcome for
        the rest, value and gradient: the ratio is the same throughout it. No gradient flows through what is filled in.
        """
        student = student_logprobs.detach()
        outside = student.scatter(-1, self.ids, _NOWHERE).logsumexp(-1, keepdim=True)
        filled = student - outside + self.log_tail[:, None].to(student.dtype)
        return filled.scatter(-1, self.ids, self.logprobs.to(student.dtype))

    def _widened(self, width: int) -> TopTokens:
        missing = width - self.ids.shape[1]
        if not missing:
            return self
        repeated = [torch.cat([column, column[:, :1].expand(-1, missing)], -1) for column in (self.ids, self.logprobs)]
        return TopTokens(repeated[0], repeated[1], self.log_tail)
