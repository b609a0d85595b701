"""What can be said of a model from the problems it answered. Pure; imports neither torch nor numpy.

n samples of a problem, c of them right. Samples of one problem are not independent trials, so intervals are over problems.
"""

import math
from collections.abc import Hashable, Sequence

_Z95 = 1.959964  # two-sided 95 % of the normal distribution


def avg_at_k(num_right: Sequence[int], num_samples: int) -> float:
    """Mean share of right samples, over problems."""
    return sum(num_right) / (num_samples * len(num_right))


def pass_at_k(num_right: int, num_samples: int, k: int) -> float:
    """Unbiased probability that at least one of k samples of a problem is right, 1 <= k <= n (Chen et al. 2021, eq. 1).

    1 - C(n-c, k) / C(n, k), as a product that stays in range for any n.
    """
    if num_samples - num_right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(num_samples - num_right + 1, num_samples + 1))


def maj_at_k(found: Sequence[Hashable | None], is_right: Sequence[bool]) -> float:
    """Probability that the answer which most samples of a problem give is right, ties broken at random.

    Samples without an answer do not vote; a problem without votes is wrong. The order of the samples does not count.
    """
    votes: dict[Hashable, list[bool]] = {}
    for answer, verdict in zip(found, is_right, strict=True):
        if answer is not None:
            votes.setdefault(answer, []).append(verdict)
    most = max(map(len, votes.values()), default=0)
    winners = [verdicts for verdicts in votes.values() if len(verdicts) == most]
    return sum(sum(verdicts) / most for verdicts in winners) / len(winners) if winners else 0.0


def agreement(found: Sequence[Hashable | None]) -> float:
    """Share of a problem's samples that give the most frequent answer: how sure a model is of it, in [0, 1]."""
    counts: dict[Hashable, int] = {}
    for answer in found:
        if answer is not None:
            counts[answer] = counts.get(answer, 0) + 1
    return max(counts.values(), default=0) / len(found)


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` independent trials (Wilson 1927): for one sample per problem."""
    spread = _Z95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered_standard_error(by_problem: Sequence[float]) -> float:
    """Standard error of the mean over problems, whatever the number of samples behind each; 0 for one problem."""
    count = len(by_problem)
    if count < 2:
        return 0.0
    mean = sum(by_problem) / count
    return math.sqrt(sum((value - mean) ** 2 for value in by_problem) / (count - 1) / count)


def clustered_interval(by_problem: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean over problems of figures in [0, 1]: normal, by the clustered standard error."""
    mean = sum(by_problem) / len(by_problem)
    half = _Z95 * clustered_standard_error(by_problem)
    return max(0.0, mean - half), min(1.0, mean + half)


def bootstrap_interval(by_problem: Sequence[float], seed: int, num_resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile interval of a mean over problems: whole problems are drawn with replacement.

    The draws depend on the seed and the number of problems alone, so two arms on the same problems share them.
    """
    import numpy as np  # here alone: the backend, which has no numpy, computes the other figures

    values = np.asarray(by_problem, dtype=np.float64)
    draws = np.random.Generator(np.random.Philox(key=[seed, len(values)]))
    means = [values[draws.integers(len(values), size=len(values))].mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p-value of McNemar's test: whether two arms differ on the same problems, answered once by each.

    Only problems on which exactly one arm is right count; under the null either is equally likely to be that one.
    """
    pairs = list(zip(first, second, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    trials = only_first + only_second
    tail = sum(math.comb(trials, i) for i in range(min(only_first, only_second) + 1))
    # Integers to the end: 1 << trials leaves the range of a float at 1024 problems.
    return min(1.0, 2 * tail / (1 << trials))


def calibration_error(confidences: Sequence[float], outcomes: Sequence[float], num_bins: int = 10) -> float:
    """Expected calibration error: mean |confidence - outcome| over bins of equal width, weighted by their counts.

    Confidences and outcomes in [0, 1]; an outcome may be a probability (of being right) instead of a verdict.
    """
    sums: dict[int, list[float]] = {}
    for confidence, outcome in zip(confidences, outcomes, strict=True):
        of_bin = sums.setdefault(min(int(confidence * num_bins), num_bins - 1), [0.0, 0.0])
        of_bin[0] += confidence
        of_bin[1] += outcome
    return sum(abs(confidence - outcome) for confidence, outcome in sums.values()) / len(confidences)


def paired_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Mean over problems of `second` minus `first` and its 95 % interval, by the standard error of the differences."""
    differences = [b - a for a, b in zip(first, second, strict=True)]
    mean = sum(differences) / len(differences)
    half = _Z95 * clustered_standard_error(differences)
    return mean, mean - half, mean + half
