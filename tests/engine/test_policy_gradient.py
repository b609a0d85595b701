"""The policy gradient of the sampled token: in the mean over all tokens it is the gradient of the reverse KL."""

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from engine.divergences import ReverseKL, TokenScores
from engine.policy_gradient import PolicyGradient
from tests.engine.objectives import POLICY_GRADIENTS, few_examples, logprobs, pairs_of_logits
from tests.engine.references import Array, probabilities

every_baseline = pytest.mark.parametrize("objective", POLICY_GRADIENTS, ids=str)


def gradients_by_token(objective: PolicyGradient, logits: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient with respect to `logits` [V] for each token that might be sampled: [V] and [V, V]."""
    values, gradients = [], []
    for token in range(len(logits)):
        leaf = logits.clone().requires_grad_()
        given_scores = TokenScores(logprobs(leaf)[None], teacher[None], torch.tensor([token]))
        value = objective.per_token(given_scores)
        values.append(value.detach()[0])
        gradients.append(torch.autograd.grad(value.sum(), leaf)[0])
    return torch.stack(values), torch.stack(gradients)


@every_baseline
@few_examples
@given(pairs_of_logits)
def test_the_expected_gradient_is_that_of_the_reverse_kl(objective: PolicyGradient, pair: tuple[Array, Array]) -> None:
    """Enumerated over the whole vocabulary, weighted by the student's probabilities: nothing is sampled here."""
    logits, teacher = torch.tensor(pair[0][0]), logprobs(pair[1][0])
    values, gradients = gradients_by_token(objective, logits, teacher)
    chances = torch.from_numpy(probabilities(logits.numpy()))
    leaf = logits.clone().requires_grad_()
    exact = ReverseKL().between(logprobs(leaf), teacher)
    (expected,) = torch.autograd.grad(exact, leaf)
    torch.testing.assert_close(chances @ gradients, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(chances @ values, exact.detach(), rtol=1e-9, atol=1e-11)


@every_baseline
def test_the_gradient_is_that_of_the_token_times_its_advantage(objective: PolicyGradient) -> None:
    generator = torch.Generator().manual_seed(4)
    logits, teacher = (torch.randn(7, dtype=torch.float64, generator=generator) for _ in range(2))
    _, gradients = gradients_by_token(objective, logits, logprobs(teacher))
    s, q = probabilities(logits.numpy()), probabilities(teacher.numpy())
    reward = np.log(q) - np.log(s)
    mean = (s * reward).sum() if objective.baseline == "closed_form" else 0.0
    expected = -(reward - mean)[:, None] * (np.eye(7) - s)
    np.testing.assert_allclose(gradients.numpy(), expected, rtol=1e-11, atol=1e-13)


def test_the_baseline_lowers_the_variance_where_the_models_differ_much() -> None:
    """Summed over all coordinates, by enumeration; the mean stays, so the mean square tells."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0], dtype=torch.float64)
    teacher = logprobs(torch.tensor([-4.0, -5.0, -5.5, 6.0, 5.0], dtype=torch.float64))
    chances = torch.softmax(logits, -1)
    squares = [
        float(chances @ gradients_by_token(objective, logits, teacher)[1].square().sum(-1))
        for objective in POLICY_GRADIENTS
    ]
    assert squares[1] < squares[0] / 2, squares
