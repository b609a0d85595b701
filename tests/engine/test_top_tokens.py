"""What a served teacher leaves out is one outcome: value and gradient are those of a divergence over the told tokens and the rest."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.divergences import TokenScores
from engine.objective_spec import Divergence
from engine.top_tokens import TopTokens
from tests.engine.objectives import FULL, POLICY_GRADIENTS

VOCABULARY = 13


def drawn(num_tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits with gradient, teacher log-probabilities, tokens that stand there; float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_tokens, VOCABULARY, dtype=torch.float64, generator=generator)
    teacher = (3 * torch.randn(num_tokens, VOCABULARY, dtype=torch.float64, generator=generator)).log_softmax(-1)
    ids = torch.randint(VOCABULARY, (num_tokens,), generator=generator)
    return logits.requires_grad_(), teacher, ids


def told_of(teacher: Tensor, ids: Tensor, top_k: int) -> TopTokens:
    """The `top_k` likeliest and the token that stands there, in float64; the tail is summed over what is left."""
    told = torch.cat([ids[:, None], teacher.topk(top_k).indices], -1)
    tail = teacher.scatter(-1, told, -torch.inf).logsumexp(-1)
    return TopTokens(told, teacher.gather(-1, told), tail)


def merged(logprobs: Tensor, told: list[int]) -> Tensor:
    """One position's outcomes: each told token, then all others."""
    rest = [one for one in range(VOCABULARY) if one not in told]
    return torch.cat([logprobs[told], logprobs[rest].logsumexp(-1, keepdim=True)])


@pytest.mark.parametrize("divergence", [*FULL, *POLICY_GRADIENTS], ids=repr)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), top_k=st.integers(1, VOCABULARY - 2))
def test_value_and_gradient_are_those_over_the_told_tokens_and_the_rest(
    divergence: Divergence, seed: int, top_k: int
) -> None:
    logits, teacher, ids = drawn(3, seed)
    student = logits.log_softmax(-1)
    told = told_of(teacher, ids, top_k)
    found = divergence.per_token(TokenScores(student, told.filled(student), ids))
    (gradient,) = torch.autograd.grad(found.sum(), [logits])

    expected = []
    again = logits.detach().clone().requires_grad_()
    for row, standing in enumerate(ids.tolist()):
        kept = list(dict.fromkeys([standing, *teacher[row].topk(top_k).indices.tolist()]))
        coarse = [merged(one, kept)[None] for one in (again[row].log_softmax(-1), teacher[row])]
        expected.append(divergence.per_token(TokenScores(coarse[0], coarse[1], torch.tensor([0]))))
    total = torch.cat(expected)
    (expected_gradient,) = torch.autograd.grad(total.sum(), [again])
    torch.testing.assert_close(found, total, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("divergence", FULL, ids=repr)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), top_k=st.integers(1, VOCABULARY - 2))
def test_it_is_a_lower_bound_that_rises_to_the_whole_divergence(divergence: Divergence, seed: int, top_k: int) -> None:
    logits, teacher, ids = drawn(3, seed)
    student = logits.detach().log_softmax(-1)

    def at(k: int) -> Tensor:
        return divergence.per_token(TokenScores(student, told_of(teacher, ids, k).filled(student), ids))

    whole = divergence.per_token(TokenScores(student, teacher, ids))
    assert bool((at(top_k) <= at(top_k + 1) + 1e-9).all())
    assert bool((at(top_k) <= whole + 1e-9).all())
    torch.testing.assert_close(at(VOCABULARY - 1), whole, rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 10**6), top_k=st.integers(1, VOCABULARY - 1))
def test_what_is_filled_in_is_a_distribution_with_the_told_tokens_untouched(seed: int, top_k: int) -> None:
    logits, teacher, ids = drawn(4, seed)
    told = told_of(teacher, ids, top_k)
    filled = told.filled(logits.log_softmax(-1))
    assert not filled.requires_grad
    torch.testing.assert_close(filled.logsumexp(-1), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
    assert torch.equal(filled.gather(-1, told.ids), told.logprobs)


def test_a_servers_answer_is_padded_with_what_it_has_and_counts_nothing_twice() -> None:
    told = TopTokens.of([{3: math.log(0.5), 1: math.log(0.25)}, {2: math.log(0.9)}])
    assert told.ids.tolist() == [[3, 1], [2, 2]]
    torch.testing.assert_close(told.log_tail.exp(), torch.tensor([0.25, 0.1]))
    torch.testing.assert_close(told.kept_mass, torch.tensor([0.75, 0.9]))


def test_probabilities_that_sum_to_more_than_one_leave_a_finite_rest() -> None:
    told = TopTokens.of([{0: math.log(0.6), 1: math.log(0.400001)}])
    assert told.log_tail.item() == pytest.approx(math.log(1e-7))
    assert bool(told.filled(torch.full((1, 5), -math.log(5.0))).isfinite().all())


def test_answers_of_different_widths_are_joined() -> None:
    wide, narrow = TopTokens.of([{0: -1.0, 1: -2.0, 2: -3.0}]), TopTokens.of([{4: -0.5}])
    both = TopTokens.joined([wide, narrow])
    assert both.ids.tolist() == [[0, 1, 2], [4, 4, 4]]
    assert both.log_tail.tolist() == [*wide.log_tail.tolist(), *narrow.log_tail.tolist()]
    assert len(TopTokens.joined([])) == 0


def test_a_vocabulary_that_is_told_whole_leaves_nothing_to_fill() -> None:
    logprobs = torch.randn(2, 4, dtype=torch.float64).log_softmax(-1)
    told = TopTokens(torch.arange(4).repeat(2, 1), logprobs, torch.full((2,), math.log(1e-7), dtype=torch.float64))
    assert torch.equal(told.filled(torch.randn(2, 4, dtype=torch.float64).log_softmax(-1)), logprobs)
