"""Divergences on a few likely tokens: what they keep, what they leave out, and where they become the full ones."""

import numpy as np
import pytest
import torch
from hypothesis import given

from engine.divergences import DistributionDivergence, ForwardKL, ReverseKL
from engine.topk_divergences import TeacherOrder, TopKKL
from tests.engine.objectives import TOP_K, few_examples, logprobs, pairs_of_distinct_logits, pairs_of_logits, scores
from tests.engine.references import Array, kept_mass

every_choice = pytest.mark.parametrize("divergence", TOP_K, ids=str)


def full(divergence: TopKKL) -> DistributionDivergence:
    return ForwardKL() if divergence.direction == "forward" else ReverseKL()


@every_choice
@few_examples
@given(pairs_of_logits)
def test_all_tokens_are_the_full_divergence_in_value_and_gradient(
    divergence: TopKKL, pair: tuple[Array, Array]
) -> None:
    student, teacher = torch.tensor(pair[0]).requires_grad_(), logprobs(pair[1])
    whole = divergence.model_copy(update={"k": teacher.shape[-1]})
    expected = full(divergence).between(logprobs(student), teacher)
    found = whole.between(logprobs(student), teacher)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    gradients = [torch.autograd.grad(each.sum(), student)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@every_choice
@few_examples
@given(pairs_of_distinct_logits)
def test_the_kept_masses_are_those_of_the_support(divergence: TopKKL, pair: tuple[Array, Array]) -> None:
    student, teacher = pair
    of, others = (teacher, student) if divergence.support == "teacher" else (student, teacher)
    _, masses = divergence.measured(scores(logprobs(student), logprobs(teacher)))
    assert TopKKL.measure_names == ("kept_mass_student", "kept_mass_teacher")
    for mass, logits in zip(masses, (student, teacher), strict=True):
        np.testing.assert_allclose(mass.numpy(), kept_mass(divergence, logits, others, of), rtol=1e-12)


@pytest.mark.parametrize("divergence", [one for one in TOP_K if one.rest == "tail_bucket"], ids=str)
@few_examples
@given(pairs_of_logits)
def test_a_tail_bucket_never_adds_divergence(divergence: TopKKL, pair: tuple[Array, Array]) -> None:
    """Outcomes thrown together can only look more alike (data processing inequality)."""
    student, teacher = map(logprobs, pair)
    assert bool((divergence.between(student, teacher) <= full(divergence).between(student, teacher) + 1e-12).all())


@pytest.mark.parametrize("rest", ["tail_bucket", "renormalised"])
def test_tokens_outside_a_renormalised_support_get_no_gradient_and_a_tail_pulls_them_alike(rest: str) -> None:
    generator = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(1, 9, dtype=torch.float64, generator=generator) for _ in range(2))
    divergence = TopKKL.model_validate({"k": 3, "rest": rest})
    outside = torch.ones(9, dtype=torch.bool)
    outside[teacher[0].topk(3).indices] = False
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(divergence.between(logprobs(student), logprobs(teacher)).sum(), student)
    pull = gradient[0, outside] / logprobs(student.detach()).exp()[0, outside]
    if rest == "renormalised":
        assert float(gradient[0, outside].abs().max()) < 1e-15
    else:
        torch.testing.assert_close(pull, pull[:1].expand_as(pull))
        assert float(pull.abs().max()) > 1e-3


def test_a_tail_that_is_almost_nothing_keeps_its_digits_in_float32() -> None:
    """1 - kept mass would be 0 here; the tail's share of the divergence is 1e-12 · log 10."""
    student = torch.full((1, 50), -27.6310211)  # log 1e-12
    student[0, 0] = 0.0
    teacher = student.clone()
    teacher[0, 1:] += 2.3025851
    found = TopKKL(k=1, direction="forward").between(student, teacher)
    exact = ForwardKL().between(logprobs(student.double()), logprobs(teacher.double()))
    # Float32 log-probabilities near 0 carry 6e-8 of their own; the tail's own term is exact to its digits.
    assert float(found) == pytest.approx(49e-11 * 2.3025851, rel=1e-4)
    assert float(exact) < float(found)


@given(pairs_of_distinct_logits)
def test_only_the_order_of_the_teacher_counts(pair: tuple[Array, Array]) -> None:
    student, teacher = logprobs(pair[0]), logprobs(pair[1])
    objective = TeacherOrder(k=2)
    sharper = logprobs(torch.as_tensor(pair[1]) * 3)
    torch.testing.assert_close(objective.between(student, teacher), objective.between(student, sharper))


def test_the_order_loss_falls_to_zero_as_the_students_gaps_widen_in_the_teachers_order() -> None:
    """It is no divergence: a student that is its teacher still has a loss."""
    teacher = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    losses = [float(TeacherOrder(k=4).between(logprobs(teacher * gap), logprobs(teacher))) for gap in (-1, 1, 3, 20)]
    assert losses == sorted(losses, reverse=True)
    assert losses[1] > 0.5
    assert losses[-1] < 1e-7
