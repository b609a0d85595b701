"""Divergences that tests run over: every kind of the union, with each of its choices."""

from typing import get_args

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from engine.divergences import JSD, ForwardKL, ReverseKL, SkewKL, TokenScores
from engine.objective_spec import Divergence
from engine.policy_gradient import PolicyGradient
from engine.topk_divergences import TeacherOrder, TopKKL
from tests.engine.references import Array

MEMBERS = get_args(get_args(Divergence)[0])

FULL = [
    ReverseKL(),
    ForwardKL(),
    JSD(beta=0.5),
    JSD(beta=0.1),
    JSD(beta=0.9),
    SkewKL(alpha=0.1),
    SkewKL(alpha=0.4, direction="reverse"),
]
TOP_K = [
    TopKKL(k=2, support=support, rest=rest, direction=direction)
    for support in ("teacher", "student", "union")
    for rest in ("tail_bucket", "renormalised")
    for direction in ("forward", "reverse")
]
ORDER = TeacherOrder(k=2)
POLICY_GRADIENTS = [PolicyGradient(), PolicyGradient(baseline="closed_form")]
DIVERGENCES: list[Divergence] = [*FULL, *TOP_K, ORDER, *POLICY_GRADIENTS]

few_examples = settings(max_examples=25, deadline=None)  # of each choice of each divergence

pairs_of_logits = st.integers(2, 12).flatmap(
    lambda size: st.tuples(*[arrays(np.float64, (3, size), elements=st.floats(-15, 15)) for _ in range(2)])
)
# Where the order of tokens counts, no two logits may be closer than rounding.
pairs_of_distinct_logits = st.integers(2, 12).flatmap(
    lambda size: st.tuples(
        *[
            arrays(np.float64, (3, size), elements=st.integers(-1500, 1500).map(lambda n: n / 100), unique=True)
            for _ in range(2)
        ]
    )
)


def logprobs(logits: Array | Tensor) -> Tensor:
    return torch.log_softmax(torch.as_tensor(logits), dim=-1)


def scores(student: Tensor, teacher: Tensor) -> TokenScores:
    """Log-probabilities of two models, with token i mod V standing in row i."""
    return TokenScores(student, teacher, torch.arange(len(student)) % student.shape[-1])
