"""Token weights, merged stop ids and the termination guard in numpy float64, written from the papers' formulas with loops."""

import math
from collections.abc import Callable

import numpy as np

from engine.token_weights import PositionLinear, PositionPower, RemainingAdvantage, TokenWeighting, TopShare
from tests.engine.references import Array

Columns = tuple[Array, ...]
"""Student entropy, reverse KL, log teacher - log student of the tokens of one rollout."""


def none(_weighting: TokenWeighting, columns: Columns) -> Array:
    return np.array([1.0 for _ in columns[0]])


def position_power(weighting: TokenWeighting, columns: Columns) -> Array:
    assert isinstance(weighting, PositionPower)
    n = len(columns[0])
    raw = [math.pow(t / n, weighting.exponent) for t in range(1, n + 1)]
    return np.array([n * one / sum(raw) for one in raw])


def position_linear(weighting: TokenWeighting, columns: Columns) -> Array:
    assert isinstance(weighting, PositionLinear)
    n = len(columns[0])
    return np.array([1 + weighting.slope * (2 * t + 1 - n) / n for t in range(n)])


def tip(weighting: TokenWeighting, columns: Columns) -> Array:
    """Soft OR of two values in 0..1: 1 - (1 - h)(1 - d)."""
    assert isinstance(weighting, TopShare)
    scaled = []
    for values in columns[:2]:
        low, high = min(values), max(values)
        scaled.append([(v - low) / (high - low) if high > low else 0.0 for v in values])
    scores = [1 - (1 - h) * (1 - d) for h, d in zip(*scaled, strict=True)]
    kept = math.ceil(weighting.share * len(scores))
    best = sorted(range(len(scores)), key=lambda t: (-scores[t], t))[:kept]
    return np.array([len(scores) / kept if t in best else 0.0 for t in range(len(scores))])


def iw_opd(weighting: TokenWeighting, columns: Columns) -> Array:
    assert isinstance(weighting, RemainingAdvantage)
    sizes = [abs(a) for a in columns[2]]
    whole = sum(sizes) or 1.0
    return np.array([1 + weighting.gamma * (1 - sum(sizes[:t]) / whole) for t in range(len(sizes))])


REFERENCES: dict[str, Callable[[TokenWeighting, Columns], Array]] = {
    "none": none,
    "position_power": position_power,
    "position_linear": position_linear,
    "tip": tip,
    "iw_opd": iw_opd,
}


def merged(p: Array, stop_ids: list[int]) -> Array:
    """[N, V] probabilities with the stop ids' summed as the last column."""
    return np.concatenate([np.delete(p, stop_ids, axis=-1), p[:, stop_ids].sum(-1, keepdims=True)], axis=-1)


def termination_kl(student: Array, teacher: Array, stop_ids: list[int]) -> Array:
    """KL between two coins: p log(p/q) + (1-p) log((1-p)/(1-q)), [N, V] probabilities to [N]."""
    p, q = teacher[:, stop_ids].sum(-1), student[:, stop_ids].sum(-1)
    return np.asarray(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
