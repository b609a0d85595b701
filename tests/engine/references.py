"""Divergences in numpy float64, written from the papers and sharing nothing with the engine. [..., V] logits to [...] nats.

KL(p‖q) is cross-entropy minus entropy (Kullback and Leibler 1951); the generalised Jensen-Shannon divergence is the
entropy of the mixture minus the mean entropy (Lin 1991, eq. 5.1), with the weights of Agarwal et al. 2024 (GKD), eq. 1.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engine.divergences import JSD, ForwardKL, ReverseKL, SkewKL
from engine.objective_spec import Divergence
from engine.policy_gradient import PolicyGradient
from engine.topk_divergences import TeacherOrder, TopKKL

Array = NDArray[np.float64]
Ids = NDArray[np.int64]


def probabilities(logits: Array, temperature: float = 1.0) -> Array:
    """Softmax over the last axis."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def cross_entropy(p: Array, q: Array) -> Array:
    """-Σ p log q."""
    return np.asarray(-np.where(p > 0, p * np.log(np.where(p > 0, q, 1.0)), 0.0).sum(-1))


def entropy(p: Array) -> Array:
    """-Σ p log p."""
    return cross_entropy(p, p)


def forward_kl(divergence: Divergence, student: Array, teacher: Array, _ids: Ids) -> Array:
    assert isinstance(divergence, ForwardKL)
    p, q = probabilities(teacher), probabilities(student)
    return cross_entropy(p, q) - entropy(p)


def reverse_kl(divergence: Divergence, student: Array, teacher: Array, _ids: Ids) -> Array:
    assert isinstance(divergence, ReverseKL)
    p, q = probabilities(student), probabilities(teacher)
    return cross_entropy(p, q) - entropy(p)


def jsd(divergence: Divergence, student: Array, teacher: Array, _ids: Ids) -> Array:
    assert isinstance(divergence, JSD)
    p, q, weight = probabilities(teacher), probabilities(student), divergence.beta
    mixture = weight * p + (1 - weight) * q
    return entropy(mixture) - weight * entropy(p) - (1 - weight) * entropy(q)


def skew_kl(divergence: Divergence, student: Array, teacher: Array, _ids: Ids) -> Array:
    """Ko et al. 2024 (DistiLLM), by its definition: KL(p‖αp + (1-α)q)."""
    assert isinstance(divergence, SkewKL)
    pair = probabilities(teacher), probabilities(student)
    p, q = pair if divergence.direction == "forward" else pair[::-1]
    return cross_entropy(p, divergence.alpha * p + (1 - divergence.alpha) * q) - entropy(p)


def top_k_kl(divergence: Divergence, student: Array, teacher: Array, _ids: Ids) -> Array:
    """Row by row over sets of tokens; only right where no two logits of a row are equal."""
    assert isinstance(divergence, TopKKL)
    values = []
    for s, t in zip(probabilities(student), probabilities(teacher), strict=True):
        tops = {name: set(np.argsort(row)[-divergence.k :]) for name, row in (("student", s), ("teacher", t))}
        tokens = sorted(
            tops["student"] | tops["teacher"] if divergence.support == "union" else tops[divergence.support]
        )
        others = sorted(set(range(len(s))) - set(tokens))
        rows = []
        for row in (t, s) if divergence.direction == "forward" else (s, t):
            kept = row[tokens]
            is_bucket = divergence.rest == "tail_bucket"
            rows.append(np.append(kept, row[others].sum()) if is_bucket else kept / kept.sum())
        values.append(cross_entropy(rows[0], np.where(rows[1] > 0, rows[1], 1.0)) - entropy(rows[0]))
    return np.array(values)


def kept_mass(divergence: TopKKL, logits: Array, others: Array, support_of: Array) -> Array:
    """Probability of `logits` on the top K of `support_of`, united with that of `others` for a union."""
    p = probabilities(logits)
    chosen = np.argsort(support_of)[:, -divergence.k :]
    if divergence.support == "union":
        more = np.argsort(others)[:, -divergence.k :]
        return np.array([row[sorted({*a, *b})].sum() for row, a, b in zip(p, chosen, more, strict=True)])
    return np.asarray(np.take_along_axis(p, chosen, -1).sum(-1))


def policy_gradient(divergence: Divergence, student: Array, teacher: Array, ids: Ids) -> Array:
    """Schulman 2020, "Approximating KL divergence", k1: log s(y) - log q(y)."""
    assert isinstance(divergence, PolicyGradient)
    rows = np.arange(len(ids))
    return np.asarray(np.log(probabilities(student)[rows, ids]) - np.log(probabilities(teacher)[rows, ids]))


def teacher_order(divergence: Divergence, student: Array, teacher: Array, _ids: Ids) -> Array:
    """Plackett 1975: the product of the chances of each draw among those left; no two teacher logits may be equal."""
    assert isinstance(divergence, TeacherOrder)
    values = []
    for s, t in zip(probabilities(student), teacher, strict=True):
        order = list(np.argsort(t)[::-1][: divergence.k])
        values.append(-sum(np.log(s[order[i]] / s[order[i:]].sum()) for i in range(divergence.k)))
    return np.array(values)


REFERENCES: dict[str, Callable[[Divergence, Array, Array, Ids], Array]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "skew_kl": skew_kl,
    "top_k_kl": top_k_kl,
    "policy_gradient": policy_gradient,
    "teacher_order": teacher_order,
}


def overlap_mass(student_logits: Array, teacher_logits: Array) -> Array:
    """Probability mass that both distributions have, [..., V] to [...]: one less their total variation distance."""
    student, teacher = probabilities(student_logits), probabilities(teacher_logits)
    return 1 - np.abs(student - teacher).sum(-1) / 2
