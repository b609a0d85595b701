"""What vLLM is asked for and what it answers, which is checked before it is used: it is not ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from engine.errors import RunError
from engine.truncation import EVERY_TOKEN, Truncation


@dataclass(frozen=True)
class Ask:
    """One completion to be sampled."""

    token_ids: list[int]
    """What is continued."""
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """What a server has sampled."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["eos", "length"]


@dataclass(frozen=True)
class Draws:
    """How all completions of a run are drawn."""

    temperature: float
    eos_token_ids: frozenset[int]
    vocabulary: int
    """Ids from it on are not a token of both models."""
    truncation: Truncation = EVERY_TOKEN
    """Which tokens may be drawn."""


def checked(
    token_ids: list[int], logprobs: list[float], ask: Ask, draws: Draws, mismatch: Callable[[str], RunError]
) -> Answer:
    """The answer; raises what `mismatch` makes of the words for what is wrong with it."""
    has_ended = bool(token_ids) and token_ids[-1] in draws.eos_token_ids
    if not 0 < len(token_ids) <= ask.max_tokens or len(logprobs) != len(token_ids):
        raise mismatch(
            f"answered {len(token_ids)} tokens and {len(logprobs)} log-probabilities where {ask.max_tokens} tokens were asked for."
        )
    if not has_ended and len(token_ids) < ask.max_tokens:
        raise mismatch(f"ended a text after {len(token_ids)} of {ask.max_tokens} tokens without an end-of-text token.")
    if not all(0 <= token < draws.vocabulary for token in token_ids):
        raise mismatch(
            f"sampled token {max(token_ids)} but student and teacher share only the first {draws.vocabulary}; it serves "
            "another model."
        )
    if not all(math.isfinite(one) and one < 1e-3 for one in logprobs):
        raise mismatch("answered log-probabilities that are none; look at its log.")
    return Answer(token_ids, logprobs, "eos" if has_ended else "length")
