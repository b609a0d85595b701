"""Divergences against independent formulas, their properties, their gradients, and float32 at the extremes."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from engine.divergences import JSD, Divergence, ForwardKL, ReverseKL, TokenScores
from tests.engine.references import REFERENCES, Array, probabilities

MEMBERS = get_args(get_args(Divergence)[0])
DIVERGENCES: list[Divergence] = [ReverseKL(), ForwardKL(), JSD(beta=0.5), JSD(beta=0.1), JSD(beta=0.9)]
every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)

pairs_of_logits = st.integers(2, 12).flatmap(
    lambda size: st.tuples(*[arrays(np.float64, (3, size), elements=st.floats(-15, 15)) for _ in range(2)])
)


def logprobs(logits: Array | Tensor) -> Tensor:
    return torch.log_softmax(torch.as_tensor(logits), dim=-1)


def test_every_divergence_of_the_union_has_a_reference() -> None:
    assert REFERENCES.keys() == {member.model_fields["kind"].default for member in MEMBERS}
    assert {type(divergence) for divergence in DIVERGENCES} == set(MEMBERS)


@every_divergence
@given(pairs_of_logits)
def test_value_is_that_of_the_reference(divergence: Divergence, pair: tuple[Array, Array]) -> None:
    student, teacher = pair
    found = divergence.between(logprobs(student), logprobs(teacher)).numpy()
    np.testing.assert_allclose(found, REFERENCES[divergence.kind](divergence, student, teacher), rtol=1e-10, atol=1e-10)


@every_divergence
def test_per_token_is_between_on_the_scores(divergence: Divergence) -> None:
    student, teacher = (logprobs(torch.randn(5, 7, dtype=torch.float64)) for _ in range(2))
    assert torch.equal(divergence.per_token(TokenScores(student, teacher)), divergence.between(student, teacher))


@every_divergence
@given(pairs_of_logits)
def test_it_is_never_negative(divergence: Divergence, pair: tuple[Array, Array]) -> None:
    found = divergence.between(*map(logprobs, pair))
    assert float(found.min()) >= -1e-14


@every_divergence
@given(pairs_of_logits)
def test_it_is_zero_only_for_equal_distributions(divergence: Divergence, pair: tuple[Array, Array]) -> None:
    student, teacher = map(logprobs, pair)
    assert float(divergence.between(student, student).abs().max()) == pytest.approx(0, abs=1e-15)
    distance = (student.exp() - teacher.exp()).abs().sum(-1)
    # Pinsker's inequality bounds a KL from below by the distance; a JSD holds two KLs to a mixture between the two.
    weight = divergence.beta * (1 - divergence.beta) if isinstance(divergence, JSD) else 1.0
    assert bool((divergence.between(student, teacher) >= weight * distance**2 / 2 - 1e-12).all())


@given(pairs_of_logits)
def test_jsd_at_half_is_symmetric_and_at_most_log_2(pair: tuple[Array, Array]) -> None:
    student, teacher = map(logprobs, pair)
    found = JSD(beta=0.5).between(student, teacher)
    torch.testing.assert_close(found, JSD(beta=0.5).between(teacher, student), rtol=0, atol=1e-14)
    assert float(found.max()) <= math.log(2) + 1e-14


def test_jsd_reaches_log_2_for_distributions_without_overlap() -> None:
    student, teacher = (logprobs(np.array([row])) for row in ([60.0, 0.0], [0.0, 60.0]))
    assert float(JSD(beta=0.5).between(student, teacher)) == pytest.approx(math.log(2), abs=1e-12)


@given(pairs_of_logits)
def test_jsd_tends_to_the_kls_at_its_ends(pair: tuple[Array, Array]) -> None:
    student, teacher = map(logprobs, pair)
    small = 1e-7
    near_forward = JSD(beta=small).between(student, teacher) / small
    near_reverse = JSD(beta=1 - small).between(student, teacher) / small
    # The next term of the expansion is small · chi², below 1e-7 · e^5 where no log-ratio exceeds 5.
    moderate = (student - teacher).abs().amax(-1) < 5
    torch.testing.assert_close(
        near_forward[moderate], ForwardKL().between(student, teacher)[moderate], rtol=0, atol=2e-4
    )
    torch.testing.assert_close(
        near_reverse[moderate], ReverseKL().between(student, teacher)[moderate], rtol=0, atol=2e-4
    )


@every_divergence
@given(pairs_of_logits, st.floats(-100, 100))
def test_a_constant_added_to_logits_changes_nothing(
    divergence: Divergence, pair: tuple[Array, Array], constant: float
) -> None:
    student, teacher = pair
    moved = divergence.between(logprobs(student + constant), logprobs(teacher - constant))
    torch.testing.assert_close(moved, divergence.between(logprobs(student), logprobs(teacher)), rtol=1e-11, atol=1e-11)


@every_divergence
def test_gradient_is_that_of_finite_differences(divergence: Divergence) -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(3, 6, dtype=torch.float64, generator=generator) * 2 for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda logits: divergence.between(torch.log_softmax(logits, -1), logprobs(teacher)), student.requires_grad_()
    )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_reverse_kl_gradient_is_the_closed_form(temperature: float) -> None:
    generator = torch.Generator().manual_seed(2)
    logits, teacher_logits = (torch.randn(4, 9, dtype=torch.float64, generator=generator) for _ in range(2))
    logits.requires_grad_()
    divergence = ReverseKL().between(logprobs(logits / temperature), logprobs(teacher_logits / temperature))
    (gradient,) = torch.autograd.grad(divergence.sum(), logits)
    s = probabilities(logits.detach().numpy(), temperature)
    q = probabilities(teacher_logits.numpy(), temperature)
    log_ratio = np.log(s) - np.log(q)
    kl = (s * log_ratio).sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient.numpy(), s * (log_ratio - kl) / temperature, rtol=1e-10, atol=1e-12)


@every_divergence
def test_equal_models_give_no_gradient(divergence: Divergence) -> None:
    logits = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    loss = divergence.between(logprobs(logits), logprobs(logits.detach())).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach().abs()) < 1e-15
    assert float(gradient.abs().max()) < 1e-15


@every_divergence
@pytest.mark.parametrize("peak", [20.0, 60.0, 200.0, 1e4])
def test_float32_holds_for_near_one_hot_logits(divergence: Divergence, peak: float) -> None:
    """Relative error of at most 1e-5 of the largest log-ratio, whatever the peak; no NaN, no infinity."""
    same, other = torch.zeros(2, 1000), torch.zeros(2, 1000)
    same[:, 0] = peak
    other[0, 0], other[1, 1] = peak * 0.9, peak
    for student, teacher in ((same, other), (other, same)):
        student = student.clone().requires_grad_()
        found = divergence.between(torch.log_softmax(student, -1), torch.log_softmax(teacher, -1))
        exact = divergence.between(logprobs(student.detach().double()), logprobs(teacher.double()))
        assert float((found.detach().double() - exact).abs().max()) <= 1e-5 * (1 + peak)
        (gradient,) = torch.autograd.grad(found.sum(), student)
        assert bool(gradient.isfinite().all())
