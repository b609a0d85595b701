"""Merged stop ids and the termination guard, beside each divergence."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from engine.divergences import ForwardKL, ReverseKL
from engine.objective import Objective, StopMerge, shared_stop_ids
from engine.objective_spec import Divergence
from engine.setup import load_models
from engine.termination_guard import ForwardKLGuard
from engine.topk_divergences import TopKKL
from tests.engine.models import CPU, random_model, tiny_spec
from tests.engine.objectives import DIVERGENCES, ORDER, few_examples, logprobs
from tests.engine.references import REFERENCES, Array, probabilities
from tests.engine.references_weights import merged, termination_kl

STOPS = [4, 1, 6]
stop_ids = torch.tensor(STOPS)
pairs = st.tuples(
    *[arrays(np.float64, (3, 9), elements=st.integers(-900, 900).map(lambda n: n / 100), unique=True)] * 2
)


def merging(divergence: Divergence, guard: ForwardKLGuard | None = None) -> Objective:
    return Objective(divergence, guard, stop_ids, StopMerge.of(stop_ids, 9))


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@few_examples
@given(pairs, st.lists(st.integers(0, 8), min_size=3, max_size=3))
def test_a_merged_divergence_is_the_reference_on_merged_probabilities(
    divergence: Divergence, pair: tuple[Array, Array], tokens: list[int]
) -> None:
    student, teacher = (np.log(merged(probabilities(logits), STOPS)) for logits in pair)
    new = [6 if token in STOPS else token - sum(stop < token for stop in STOPS) for token in tokens]
    expected = REFERENCES[divergence.kind](divergence, student, teacher, np.array(new))
    found = merging(divergence).terms(*map(logprobs, pair), torch.tensor(tokens))
    np.testing.assert_allclose(found.loss.numpy(), expected, rtol=1e-9, atol=1e-10)
    assert torch.equal(found.divergence, found.loss)


@given(pairs)
def test_how_probability_is_shared_among_merged_stop_ids_does_not_matter(pair: tuple[Array, Array]) -> None:
    student, teacher = map(logprobs, pair)
    moved = student.exp()
    moved[:, STOPS] = moved[:, STOPS].sum(-1, keepdim=True) * torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    token_ids = torch.tensor([0, 2, 3])
    for divergence in (ReverseKL(), ForwardKL()):
        objective = merging(divergence)
        torch.testing.assert_close(
            objective.terms(moved.log(), teacher, token_ids).loss, objective.terms(student, teacher, token_ids).loss
        )


@given(pairs)
def test_the_guard_is_the_kl_of_the_coin_that_ends_a_text(pair: tuple[Array, Array]) -> None:
    found = ForwardKLGuard().per_token(*map(logprobs, pair), stop_ids)
    expected = termination_kl(*map(probabilities, pair), STOPS)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


@given(pairs)
def test_the_guard_is_zero_where_both_models_stop_alike_whatever_else_they_say(pair: tuple[Array, Array]) -> None:
    p, q = (torch.from_numpy(probabilities(logits)) for logits in pair)
    chance = p[:, STOPS].sum(-1, keepdim=True)
    q[:, STOPS] *= chance / q[:, STOPS].sum(-1, keepdim=True)
    others = [token for token in range(9) if token not in STOPS]
    q[:, others] *= (1 - chance) / q[:, others].sum(-1, keepdim=True)
    student = p.log().requires_grad_()
    found = ForwardKLGuard().per_token(torch.log_softmax(student, -1), q.log(), stop_ids).sum()
    assert float(found.detach()) == pytest.approx(0, abs=1e-12)
    (gradient,) = torch.autograd.grad(found, student)
    assert float(gradient.abs().max()) < 1e-12


def test_the_gradient_of_the_guard_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(3, 9, dtype=torch.float64, generator=generator) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda logits: ForwardKLGuard().per_token(torch.log_softmax(logits, -1), logprobs(teacher), stop_ids),
        student.requires_grad_(),
    )


@pytest.mark.parametrize("peak", [20.0, 60.0, 1e4])
def test_the_guard_holds_in_float32_where_a_model_is_certain(peak: float) -> None:
    """1 - P(stop) rounds to 0 here, and its logarithm would be infinite."""
    certain, open_ = torch.zeros(1, 50), torch.linspace(0, 1, 50)[None]
    certain[0, 2] = peak
    for student, teacher in ((certain, open_), (open_, certain)):
        student = student.clone().requires_grad_()
        found = ForwardKLGuard().per_token(logprobs(student), logprobs(teacher), torch.tensor([2, 3]))
        exact = ForwardKLGuard().per_token(
            logprobs(student.detach().double()), logprobs(teacher.double()), torch.tensor([2, 3])
        )
        assert float((found.detach().double() - exact).abs().max()) <= 1e-5 * (1 + peak)
        assert bool(torch.autograd.grad(found.sum(), student)[0].isfinite().all())


@pytest.mark.parametrize("divergence", [one for one in DIVERGENCES if one != ORDER], ids=str)
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient_with_all_options(divergence: Divergence) -> None:
    logits = torch.randn(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    objective = merging(divergence, ForwardKLGuard(weight=3))
    token_ids, weights = torch.tensor([0, 1, 4, 8]), torch.tensor([0.0, 1.0, 2.0, 0.5], dtype=torch.float64)
    loss = objective.terms(logprobs(logits), logprobs(logits.detach()), token_ids, weights).loss.sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach().abs()) < 1e-14
    assert float(gradient.abs().max()) < 1e-14


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_weights_multiply_the_divergence_and_not_the_guard(divergence: Divergence) -> None:
    """A token of weight 0 keeps its guard; without a guard it has no gradient at all."""
    generator = torch.Generator().manual_seed(7)
    logits, teacher = (torch.randn(3, 9, dtype=torch.float64, generator=generator) for _ in range(2))
    weights, token_ids = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), torch.tensor([1, 2, 3])

    def gradient(objective: Objective, weights: Tensor | None) -> Tensor:
        leaf = logits.clone().requires_grad_()
        terms = objective.terms(logprobs(leaf), logprobs(teacher), token_ids, weights)
        return torch.autograd.grad(terms.loss.sum(), leaf)[0]

    guard = ForwardKLGuard(weight=0.5)
    plain = gradient(Objective(divergence), None)
    guarded = gradient(Objective(divergence, guard, stop_ids), None)
    torch.testing.assert_close(gradient(Objective(divergence), weights), plain * weights[:, None])
    found = gradient(Objective(divergence, guard, stop_ids), weights)
    torch.testing.assert_close(found, plain * weights[:, None] + (guarded - plain))
    assert float(found[0].abs().max()) > 0


def test_measures_carry_their_names() -> None:
    objective = merging(TopKKL(k=2), ForwardKLGuard())
    terms = objective.terms(*(logprobs(torch.randn(3, 9)) for _ in range(2)), torch.tensor([0, 1, 2]))
    assert objective.measure_names == ("kept_mass_student", "kept_mass_teacher", "termination_guard")
    assert len(terms.measures) == 3
    assert not any(measure.requires_grad for measure in terms.measures)


def test_stop_ids_are_those_of_both_models_within_the_shared_vocabulary() -> None:
    student = dataclasses.replace(random_model(0), eos_token_ids=frozenset({2, 9, 400}))
    teacher = dataclasses.replace(random_model(1), eos_token_ids=frozenset({7}))
    assert shared_stop_ids(student, teacher) == [2, 7, 9]


@pytest.mark.parametrize(("change", "num_merged"), [({}, 0), ({"merge_stop_tokens": True}, 3)])
def test_a_run_merges_only_when_it_is_told_to(change: dict[str, Any], num_merged: int) -> None:
    spec = tiny_spec(**change, termination_guard={"kind": "forward_kl", "weight": 0.2})
    student, teacher = load_models(spec, CPU, "float32")
    student = dataclasses.replace(student, eos_token_ids=frozenset({2, 9}))
    teacher = dataclasses.replace(teacher, eos_token_ids=frozenset({7}))
    objective = Objective.of(spec, student, teacher)
    assert (len(objective.merge.stop_ids) if objective.merge else 0) == num_merged
    assert objective.guard == ForwardKLGuard(weight=0.2)
    # One stop id has nothing to be merged with.
    alone = dataclasses.replace(student, eos_token_ids=frozenset({7}))
    assert Objective.of(spec, alone, teacher).merge is None
