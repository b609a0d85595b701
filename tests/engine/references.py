"""Divergences in numpy float64, written from the papers and sharing nothing with the engine. [..., V] logits to [...] nats.

KL(p‖q) is cross-entropy minus entropy (Kullback and Leibler 1951); the generalised Jensen-Shannon divergence is the
entropy of the mixture minus the mean entropy (Lin 1991, eq. 5.1), with the weights of Agarwal et al. 2024 (GKD), eq. 1.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engine.divergences import JSD, Divergence, ForwardKL, ReverseKL

Array = NDArray[np.float64]


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


def forward_kl(divergence: Divergence, student: Array, teacher: Array) -> Array:
    assert isinstance(divergence, ForwardKL)
    p, q = probabilities(teacher), probabilities(student)
    return cross_entropy(p, q) - entropy(p)


def reverse_kl(divergence: Divergence, student: Array, teacher: Array) -> Array:
    assert isinstance(divergence, ReverseKL)
    p, q = probabilities(student), probabilities(teacher)
    return cross_entropy(p, q) - entropy(p)


def jsd(divergence: Divergence, student: Array, teacher: Array) -> Array:
    assert isinstance(divergence, JSD)
    p, q, weight = probabilities(teacher), probabilities(student), divergence.beta
    mixture = weight * p + (1 - weight) * q
    return entropy(mixture) - weight * entropy(p) - (1 - weight) * entropy(q)


REFERENCES: dict[str, Callable[[Divergence, Array, Array], Array]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
}


def overlap_mass(student_logits: Array, teacher_logits: Array) -> Array:
    """Probability mass that both distributions have, [..., V] to [...]: one less their total variation distance."""
    student, teacher = probabilities(student_logits), probabilities(teacher_logits)
    return 1 - np.abs(student - teacher).sum(-1) / 2
