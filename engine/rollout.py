"""One rollout: a prompt, what was written behind it, by whom, and how likely the writer found each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Author = Literal["student", "teacher", "data"]


@dataclass(frozen=True)
class RolloutRequest:
    """A prompt to be continued, with the key of its random numbers."""

    prompt_index: int
    """Line of the prompt file, counted from 0."""
    prompt_token_ids: list[int]
    num_rollouts: int
    stream: int
    """Which of the prompt's visits this is (the step in training); 0 in evaluation, so that samples share their noise."""
    max_tokens: int | None = None
    """Where these rollouts stop, if that is before the horizon of the others; None: at the horizon."""
    begun: tuple[Rollout, ...] = ()
    """What somebody else has written of each rollout, to be continued: those that are open have equally many tokens."""

    def limit(self, horizon: int) -> int:
        """Tokens that these rollouts may have where others may have `horizon`."""
        return horizon if self.max_tokens is None else min(self.max_tokens, horizon)


@dataclass(frozen=True)
class Rollout:
    """A completion. A row cut at the horizon keeps all its tokens and gets no end-of-text token."""

    prompt_index: int
    prompt_token_ids: list[int]
    completion_token_ids: list[int]
    completion_logprobs: list[float]
    """Log-probability of each token under the model that sampled it, at the sampling temperature; 0 when greedy or from data."""
    finish_reason: Literal["eos", "length"]
    supervised_start: int = 0
    """First completion position that carries loss."""
    supervised_end: int | None = None
    """The position behind the last that carries loss; None is the end of the completion."""
    author: Author = "student"
    """Who wrote the completion, or its part behind `num_begun`."""
    num_begun: int = 0
    """Leading completion tokens that the teacher had written before the author went on."""

    def is_open(self, limit: int) -> bool:
        """Whether it can be continued to `limit` tokens."""
        return self.finish_reason == "length" and len(self.completion_token_ids) < limit

    @property
    def sampled_by_student(self) -> range:
        """Completion positions whose tokens the student sampled; empty when somebody else wrote the completion."""
        count = len(self.completion_token_ids)
        return range(self.num_begun if self.author == "student" else count, count)

    @property
    def supervised(self) -> range:
        """Completion positions that carry loss; empty when the completion ended before them."""
        count = len(self.completion_token_ids)
        end = count if self.supervised_end is None else min(self.supervised_end, count)
        return range(min(self.supervised_start, end), end)


def uniforms(seed: int, request: RolloutRequest, rollout: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) that depend only on (seed, prompt, its visit, rollout); a prefix of a longer draw."""
    key = np.array([seed, (request.prompt_index << 24) ^ rollout], dtype=np.uint64)
    counter = np.array([0, request.stream, 1, 0], dtype=np.uint64)  # the 1 keeps clear of the prompt order
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).random(count)
