"""Stretches of steps with one value, found without asking at every step: a run may have a million. It imports without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple


class Stretch(NamedTuple):
    """Steps `start` to `end`, that one left out, with the same value."""

    start: int
    end: int
    value: int


def stretches(value_at: Callable[[int], int], num_steps: int, parts: Sequence[int] = (0,)) -> Iterator[Stretch]:
    """The stretches of steps 0 to `num_steps`; `parts` are the steps from which on `value_at` only rises, or only falls.

    It is asked about as often as the logarithm of each stretch's length.
    """
    ends = [min(end, num_steps) for end in (*parts[1:], num_steps)]
    for start, end in zip(parts, ends, strict=True):
        while start < end:
            value = value_at(start)
            same, other = start, start + 1
            while other < end and value_at(other) == value:
                same, other = other, 2 * other - start
            other = min(other, end)
            while other - same > 1:
                middle = (same + other) // 2
                same, other = (middle, other) if value_at(middle) == value else (same, middle)
            yield Stretch(start, other, value)
            start = other
