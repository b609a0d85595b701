"""Divergences against independent formulas, their properties, their gradients, and float32 at the extremes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.divergences import JSD, DistributionDivergence, ForwardKL, ReverseKL, SkewKL
from engine.objective_spec import Divergence
from tests.engine.objectives import (
    DIVERGENCES,
    FULL,
    MEMBERS,
    ORDER,
    TOP_K,
    few_examples,
    logprobs,
    pairs_of_distinct_logits,
    pairs_of_logits,
    scores,
)
from tests.engine.references import REFERENCES, Array, probabilities

every_divergence = pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
every_distribution_divergence = pytest.mark.parametrize("divergence", [*FULL, *TOP_K, ORDER], ids=str)


def test_every_divergence_of_the_union_has_a_reference() -> None:
    assert REFERENCES.keys() == {member.model_fields["kind"].default for member in MEMBERS}
    assert {type(divergence) for divergence in DIVERGENCES} == set(MEMBERS)


@every_divergence
@few_examples
@given(pairs_of_distinct_logits)
def test_value_is_that_of_the_reference(divergence: Divergence, pair: tuple[Array, Array]) -> None:
    student, teacher = pair
    given_scores = scores(logprobs(student), logprobs(teacher))
    expected = REFERENCES[divergence.kind](divergence, student, teacher, given_scores.token_ids.numpy())
    np.testing.assert_allclose(divergence.per_token(given_scores).numpy(), expected, rtol=1e-9, atol=1e-10)


@every_distribution_divergence
def test_per_token_is_between_on_the_scores(divergence: DistributionDivergence) -> None:
    student, teacher = (logprobs(torch.randn(5, 7, dtype=torch.float64)) for _ in range(2))
    assert torch.equal(divergence.per_token(scores(student, teacher)), divergence.between(student, teacher))


@every_distribution_divergence
@few_examples
@given(pairs_of_logits)
def test_it_is_never_negative(divergence: DistributionDivergence, pair: tuple[Array, Array]) -> None:
    found = divergence.between(*map(logprobs, pair))
    assert float(found.min()) >= -1e-14


@pytest.mark.parametrize("divergence", FULL, ids=str)
@few_examples
@given(pairs_of_logits)
def test_over_the_whole_vocabulary_it_is_zero_only_for_equal_distributions(
    divergence: DistributionDivergence, pair: tuple[Array, Array]
) -> None:
    student, teacher = map(logprobs, pair)
    assert float(divergence.between(student, student).abs().max()) == pytest.approx(0, abs=1e-15)
    distance = (student.exp() - teacher.exp()).abs().sum(-1)
    # Pinsker's inequality bounds a KL from below by the distance; a JSD holds two KLs to a mixture between the two.
    weight = 1.0
    if isinstance(divergence, JSD):
        weight = divergence.beta * (1 - divergence.beta)
    elif isinstance(divergence, SkewKL):
        weight = (1 - divergence.alpha) ** 2
    assert bool((divergence.between(student, teacher) >= weight * distance**2 / 2 - 1e-12).all())


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@few_examples
@given(pairs_of_logits)
def test_skew_kl_is_bounded_and_tends_to_the_plain_kl(direction: str, pair: tuple[Array, Array]) -> None:
    student, teacher = map(logprobs, pair)
    skewed = SkewKL.model_validate({"alpha": 0.2, "direction": direction}).between(student, teacher)
    assert float(skewed.max()) <= math.log(5) + 1e-14
    plain = (ForwardKL() if direction == "forward" else ReverseKL()).between(student, teacher)
    assert bool((skewed <= 0.8 * plain + 1e-12).all()), "KL is convex in its second argument"
    near = SkewKL.model_validate({"alpha": 1e-9, "direction": direction}).between(student, teacher)
    # KL(p‖αp + (1-α)q) loses at most log(1 + α·max p/q) against KL(p‖q).
    torch.testing.assert_close(near, plain, rtol=0, atol=1e-9 * math.exp(float((student - teacher).abs().max())) + 1e-8)


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
@few_examples
@given(pairs_of_distinct_logits, st.floats(-100, 100))
def test_a_constant_added_to_logits_changes_nothing(
    divergence: Divergence, pair: tuple[Array, Array], constant: float
) -> None:
    student, teacher = pair
    moved = divergence.per_token(scores(logprobs(student + constant), logprobs(teacher - constant)))
    still = divergence.per_token(scores(logprobs(student), logprobs(teacher)))
    torch.testing.assert_close(moved, still, rtol=1e-11, atol=1e-11)


@every_distribution_divergence
def test_gradient_is_that_of_finite_differences(divergence: DistributionDivergence) -> None:
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


@pytest.mark.parametrize("divergence", [one for one in DIVERGENCES if one != ORDER], ids=str)
def test_equal_models_give_no_loss_and_no_gradient(divergence: Divergence) -> None:
    logits = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    loss = divergence.per_token(scores(logprobs(logits), logprobs(logits.detach()))).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach().abs()) < 1e-15
    assert float(gradient.abs().max()) < 1e-15


@every_distribution_divergence
@pytest.mark.parametrize("peak", [20.0, 60.0, 200.0, 1e4])
def test_float32_holds_for_near_one_hot_logits(divergence: DistributionDivergence, peak: float) -> None:
    """Relative error of at most 1e-5 of the largest log-ratio, whatever the peak; no NaN, no infinity."""
    same, other = torch.zeros(2, 1000), torch.zeros(2, 1000)
    same += torch.linspace(0, 8, 1000)  # no ties, which the top k of float32 and of float64 would break differently
    other += torch.linspace(8, 0, 1000)
    same[:, 0] = peak
    other[0, 0], other[1, 1] = peak * 0.9, peak
    for student, teacher in ((same, other), (other, same)):
        student = student.clone().requires_grad_()
        found = divergence.between(torch.log_softmax(student, -1), torch.log_softmax(teacher, -1))
        exact = divergence.between(logprobs(student.detach().double()), logprobs(teacher.double()))
        assert float((found.detach().double() - exact).abs().max()) <= 1e-5 * (1 + peak)
        (gradient,) = torch.autograd.grad(found.sum(), student)
        assert bool(gradient.isfinite().all())
