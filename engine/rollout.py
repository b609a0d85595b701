"""One rollout: a prompt, what the student wrote behind it, and how likely it found each token."""

from dataclasses import dataclass
from typing import Literal

import numpy as np


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


@dataclass(frozen=True)
class Rollout:
    """A sampled completion. A row cut at the horizon keeps all its tokens and gets no end-of-text token."""

    prompt_index: int
    prompt_token_ids: list[int]
    completion_token_ids: list[int]
    completion_logprobs: list[float]
    """Log-probability of each sampled token under the student at the sampling temperature; 0 when greedy."""
    finish_reason: Literal["eos", "length"]
    supervised_start: int = 0
    """First completion position that carries loss."""
    supervised_end: int | None = None
    """The position behind the last that carries loss; None is the end of the completion."""

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
