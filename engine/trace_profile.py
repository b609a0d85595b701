"""What the token traces of one step say together: by completion position and by token type. It imports without torch.

Made where the traces are written, so that a reader of a thousand steps opens no trace file. Positions stand in bins of
equal width, at most MAX_BINS over the full length, so the bins of all steps of a run are the same.
"""

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from engine.frozen import Frozen
from engine.token_trace import TokenTrace

TraceMetric = Literal["reverse_kl", "forward_kl", "jsd", "student_entropy", "teacher_entropy", "overlap_mass"]
MAX_BINS = 512  # a browser draws a line of so many marks without delay
MAX_TOKEN_TYPES = 100
_MAX_TEXT = 64  # characters of a token: a run of blanks or dashes can be much longer
_DIGITS = 6

Bins = Annotated[list[float], Field(max_length=MAX_BINS)]
Counts = Annotated[list[int], Field(max_length=MAX_BINS)]


class BinValues(Frozen):
    """A quantity by bin, over all tokens in it: nats, or a share for `overlap_mass`."""

    mean: Bins
    p10: Bins
    p50: Bins
    p90: Bins


class TokenType(Frozen):
    """A token of the vocabulary as it was sampled in these rollouts."""

    token_id: int
    text: Annotated[str, Field(max_length=_MAX_TEXT)]
    """As in TokenTrace.texts, cut."""
    count: int
    reverse_kl: float
    """Summed over its occurrences, in nats."""


class TraceProfile(Frozen):
    """The rollouts of one trace file, taken together."""

    length: Annotated[int, Field(ge=1)]
    """The full length of a completion, in tokens; bin_width(length, MAX_BINS) is the bins' width."""
    num_rollouts: int
    num_tokens: int
    reverse_kl: float
    """Summed over all tokens, in nats."""
    rollouts: Counts
    """How many rollouts reach each bin; the bins end with the longest rollout."""
    tokens: Counts
    """How many tokens lie in each bin."""
    values: dict[TraceMetric, BinValues]
    """`overlap_mass` is the probability that both models share among the stored candidates (both models' top k): the sum
    of the smaller of the two, a lower bound of the overlap over the vocabulary."""
    token_types: Annotated[list[TokenType], Field(max_length=MAX_TOKEN_TYPES)]
    """Those with the largest sums, largest first."""

    @model_validator(mode="after")
    def _has_every_bin(self) -> Self:
        columns = [getattr(one, name) for one in self.values.values() for name in BinValues.model_fields]
        if {len(column) for column in columns} != {len(self.tokens)} or len(self.rollouts) != len(self.tokens):
            raise ValueError(f"every list must have {len(self.tokens)} bins, as many as tokens has")
        if set(self.values) != set(get_args(TraceMetric)) or min(self.tokens) < 1:
            raise ValueError("every metric must be there, and a token in every bin")
        return self


def bin_width(length: int, most: int) -> int:
    """Positions in a bin, so that a completion of `length` tokens has at most `most` bins."""
    return -(-length // most)


def trace_profile(traces: Sequence[TokenTrace], length: int) -> TraceProfile:
    """The profile of one or more traces of at most `length` tokens."""
    width = bin_width(length, MAX_BINS)
    num_bins = -(-max(len(trace.token_ids) for trace in traces) // width)
    starts = range(0, num_bins * width, width)
    reverse = [value for trace in traces for value in trace.reverse_kl]
    return TraceProfile(
        length=length,
        num_rollouts=len(traces),
        num_tokens=len(reverse),
        reverse_kl=_rounded(math.fsum(reverse)),
        rollouts=[sum(len(trace.token_ids) > start for trace in traces) for start in starts],
        tokens=[sum(len(trace.token_ids[start : start + width]) for trace in traces) for start in starts],
        values={metric: _by_bin([_COLUMNS[metric](trace) for trace in traces], starts) for metric in _COLUMNS},
        token_types=_token_types(traces),
    )


def _by_bin(columns: list[list[float]], starts: range) -> BinValues:
    ordered = [sorted(value for column in columns for value in column[start : start + starts.step]) for start in starts]
    return BinValues(
        mean=[_rounded(math.fsum(values) / len(values)) for values in ordered],
        p10=[_quantile(values, 0.1) for values in ordered],
        p50=[_quantile(values, 0.5) for values in ordered],
        p90=[_quantile(values, 0.9) for values in ordered],
    )


def _quantile(ordered: list[float], share: float) -> float:
    """Linear between the two nearest values, as torch and numpy have it."""
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return _rounded(ordered[low] + (ordered[high] - ordered[low]) * (at - low))


def _overlap_mass(trace: TokenTrace) -> list[float]:
    rows = zip(trace.candidate_student_logprob, trace.candidate_teacher_logprob, strict=True)
    return [min(1.0, sum(map(math.exp, map(min, student, teacher)))) for student, teacher in rows]


def _token_types(traces: Sequence[TokenTrace]) -> list[TokenType]:
    found: dict[int, tuple[str, int, float]] = {}
    for trace in traces:
        for token_id, text, divergence in zip(trace.token_ids, trace.texts, trace.reverse_kl, strict=True):
            _, count, total = found.get(token_id, (text, 0, 0.0))
            found[token_id] = (text[:_MAX_TEXT], count + 1, total + divergence)
    ordered = sorted(found.items(), key=lambda one: (-one[1][2], one[0]))
    return [
        TokenType(token_id=token_id, text=text, count=count, reverse_kl=_rounded(total))
        for token_id, (text, count, total) in islice(ordered, MAX_TOKEN_TYPES)
    ]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


_COLUMNS: dict[TraceMetric, Callable[[TokenTrace], list[float]]] = {
    "reverse_kl": lambda trace: trace.reverse_kl,
    "forward_kl": lambda trace: trace.forward_kl,
    "jsd": lambda trace: trace.jsd,
    "student_entropy": lambda trace: trace.student_entropy,
    "teacher_entropy": lambda trace: trace.teacher_entropy,
    "overlap_mass": _overlap_mass,
}
assert set(_COLUMNS) == set(get_args(TraceMetric))


def first_tokens(number: int) -> str:
    """A prefix of that length, in words."""
    return "first token" if number == 1 else f"first {number:,} tokens"
