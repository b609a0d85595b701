"""What several seeds of one arm say together. Pure; imports neither torch nor numpy.

Seeds are few and their figures are means over many prompts, so intervals are Student's. One seed has no interval.
"""

import math
from collections.abc import Sequence
from statistics import fmean, variance


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean over seeds (Student's t); None of fewer than two."""
    if len(values) < 2:
        return None
    half = t_quantile_95(len(values) - 1) * math.sqrt(variance(values) / len(values))
    return fmean(values) - half, fmean(values) + half


def ratio_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float] | None:
    """Geometric mean of `first` over that of `second` and its 95 % interval; None when either has fewer than two.

    Welch's interval of the difference of means on the logarithms, its degrees of freedom rounded down. All are above 0.
    """
    if min(len(first), len(second)) < 2:
        return None
    logs = [[math.log(value) for value in values] for values in (first, second)]
    shares = [variance(each) / len(each) for each in logs]
    gap, width = fmean(logs[0]) - fmean(logs[1]), sum(shares)
    if width == 0.0:
        return math.exp(gap), math.exp(gap), math.exp(gap)
    # The share of each in the whole, and not its square alone: variances of 1e-170 would leave the range of a float.
    freedom = 1 / sum((share / width) ** 2 / (len(each) - 1) for share, each in zip(shares, logs, strict=True))
    half = t_quantile_95(max(1, int(freedom))) * math.sqrt(width)
    return math.exp(gap), math.exp(gap - half), math.exp(gap + half)


def t_quantile_95(freedom: int) -> float:
    """The t for which Student's distribution has 95 % within ±t, with whole degrees of freedom, 1 at least."""
    low, high = 1.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| < t), by the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    is_odd = freedom % 2 == 1
    term = total = 0.0 if freedom == 1 else math.cos(angle) if is_odd else 1.0
    for k in range(3 if is_odd else 2, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if is_odd else math.sin(angle) * total
