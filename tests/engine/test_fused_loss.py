"""The fused loss equals the plain computation over [N, V], whatever the chunk, and never makes a tensor of that size."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from engine import fused_loss
from engine.divergences import ReverseKL, TokenScores
from engine.fused_loss import FusedLoss, Heads, chunk_tokens, fused_divergence
from engine.language_model import OutputHead
from engine.objective import Objective
from engine.objective_spec import Divergence
from tests.engine.objectives import DIVERGENCES, ORDER


@contextmanager
def chunks_of(num_tokens: int, vocabulary: int) -> Iterator[None]:
    """Chunks of `num_tokens` (>= 16) tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_loss, "_CHUNK_ENTRIES", num_tokens * vocabulary)
        assert chunk_tokens(vocabulary) == num_tokens
        yield


class Case:
    """Hidden states, heads and targets for N tokens in float64, all of them different in width."""

    def __init__(
        self,
        num_tokens: int,
        *,
        vocabulary: int = 13,
        teacher_vocabulary: int = 13,
        bias: bool = True,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(num_tokens)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        self.shared = min(vocabulary, teacher_vocabulary)
        self.hidden = draw(num_tokens, 5).requires_grad_()
        self.weight = draw(vocabulary, 5).requires_grad_()
        self.bias = draw(vocabulary).requires_grad_() if bias else None
        self.teacher_hidden = draw(num_tokens, 7)
        self.teacher_head = OutputHead(
            draw(teacher_vocabulary, 7), draw(teacher_vocabulary), scale, softcap, self.shared
        )
        self.student_head = OutputHead(self.weight, self.bias, scale, softcap, self.shared)
        self.target_ids = torch.randint(self.shared, (num_tokens,), generator=generator)
        self.leaves = [leaf for leaf in (self.hidden, self.weight, self.bias) if leaf is not None]
        self.scale, self.softcap = scale, softcap

    def fused(self, divergence: Divergence, temperature: float = 1.0, num_supervised: int = 100) -> FusedLoss:
        return fused_divergence(
            self.hidden,
            self.teacher_hidden,
            self.target_ids,
            heads=Heads(self.student_head, self.teacher_head, temperature),
            objective=Objective(divergence),
            num_supervised_tokens=num_supervised,
        )

    def plain_logprobs(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
        logits = hidden @ weight.T
        if bias is not None:
            logits = logits + bias
        logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return torch.log_softmax(logits[:, : self.shared] / temperature, -1)

    def plain(self, divergence: Divergence, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Per-token divergences, student and teacher log-probabilities, [N, V] at once."""
        student = self.plain_logprobs(self.hidden, self.weight, self.bias, temperature)
        head = self.teacher_head
        teacher = self.plain_logprobs(self.teacher_hidden, head.weight, head.bias, temperature)
        return divergence.per_token(TokenScores(student, teacher, self.target_ids)), student, teacher


@settings(max_examples=150)
@given(
    num_tokens=st.integers(1, 70),
    chunk=st.sampled_from([16, 17, 23, 64, 1000]),
    divergence=st.sampled_from(DIVERGENCES),
    temperature=st.sampled_from([0.3, 1.0, 4.0]),
    vocabularies=st.sampled_from([(13, 13), (13, 16), (16, 13)]),
    bias=st.booleans(),
    shape=st.sampled_from([(1.0, None, 13), (0.25, None), (1.0, 3.0), (2.0, 5.0)]),
)
def test_value_and_gradients_are_those_of_the_plain_computation(
    num_tokens: int,
    chunk: int,
    divergence: Divergence,
    temperature: float,
    vocabularies: tuple[int, int],
    bias: bool,
    shape: tuple[float, float | None],
) -> None:
    case = Case(
        num_tokens,
        vocabulary=vocabularies[0],
        teacher_vocabulary=vocabularies[1],
        bias=bias,
        scale=shape[0],
        softcap=shape[1],
    )
    per_token, student, teacher = case.plain(divergence, temperature)
    expected = torch.autograd.grad(per_token.sum() / 100, case.leaves)
    with chunks_of(chunk, min(vocabularies)):
        found = case.fused(divergence, temperature)
        gradients = torch.autograd.grad(found.total, case.leaves)
    close = {"rtol": 1e-10, "atol": 1e-12}
    _, measures = divergence.measured(TokenScores(student, teacher, case.target_ids))
    assert found.measures.keys() == set(divergence.measure_names)
    for measured, wanted in zip(found.measures.values(), measures, strict=True):
        torch.testing.assert_close(measured, wanted, **close)
    torch.testing.assert_close(found.total, per_token.sum() / 100, **close)
    torch.testing.assert_close(found.per_token, per_token.detach(), **close)
    torch.testing.assert_close(found.student_entropy, -(student.exp() * student).sum(-1).detach(), **close)
    torch.testing.assert_close(found.teacher_entropy, -(teacher.exp() * teacher).sum(-1), **close)
    picked = student.detach()[torch.arange(num_tokens), case.target_ids]
    torch.testing.assert_close(found.student_logprob, picked, **close)
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, **close)


def test_no_token_has_no_loss_and_no_gradient() -> None:
    case = Case(0)
    gradients = torch.autograd.grad(case.fused(ReverseKL()).total, case.leaves)
    assert all(torch.equal(found, torch.zeros_like(leaf)) for found, leaf in zip(gradients, case.leaves, strict=True))


def test_a_chunk_has_twice_the_tokens_where_a_product_has_two_bytes() -> None:
    case = Case(100)
    heads = Heads(case.student_head, case.teacher_head, 1.0)
    with chunks_of(16, 13):
        assert [list(heads.chunks(100, size))[1].start for size in (2, 4, 8)] == [32, 16, 16]


def test_the_gradient_that_comes_from_behind_is_multiplied_in() -> None:
    case = Case(20)
    once = torch.autograd.grad(case.fused(ReverseKL()).total, case.leaves)
    thrice = torch.autograd.grad(3 * case.fused(ReverseKL()).total, case.leaves)
    for single, triple in zip(once, thrice, strict=True):
        torch.testing.assert_close(triple, 3 * single, rtol=1e-14, atol=0)


def test_only_the_total_carries_a_gradient() -> None:
    found = Case(20).fused(ReverseKL())
    assert found.total.requires_grad
    measured = (found.per_token, found.student_entropy, found.teacher_entropy, found.student_logprob)
    assert not any(tensor.requires_grad for tensor in measured)


@pytest.mark.parametrize("divergence", [one for one in DIVERGENCES if one != ORDER], ids=str)
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(divergence: Divergence) -> None:
    case = Case(40)
    case.teacher_hidden = case.hidden.detach()
    case.teacher_head = OutputHead(case.weight.detach(), case.student_head.bias, 1.0, None, 13)
    found = case.fused(divergence)
    assert float(found.total.detach()) == pytest.approx(0, abs=1e-15)
    assert max(float(g.abs().max()) for g in torch.autograd.grad(found.total, case.leaves)) < 1e-15


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_one_temperature_divides_the_logits_of_both_models(divergence: Divergence) -> None:
    case = Case(20, bias=False)
    cooled = Case(20, bias=False)
    cooled.student_head = OutputHead(case.weight / 4, None, 1.0, None, 13)
    head = case.teacher_head
    assert head.bias is not None
    cooled.teacher_head = OutputHead(head.weight / 4, head.bias / 4, 1.0, None, 13)
    at_four, divided = case.fused(divergence, 4.0), cooled.fused(divergence, 1.0)
    torch.testing.assert_close(at_four.per_token, divided.per_token, rtol=1e-12, atol=1e-14)


def test_totals_of_parts_add_up_to_the_mean_over_all_tokens() -> None:
    whole = Case(30)
    expected = whole.plain(ReverseKL())[0].mean()
    found = torch.zeros((), dtype=torch.float64)
    for part in (slice(0, 3), slice(3, 20), slice(20, 30)):
        case = Case(30)
        case.hidden, case.teacher_hidden = whole.hidden[part], whole.teacher_hidden[part]
        case.target_ids = whole.target_ids[part]
        found += case.fused(ReverseKL(), num_supervised=30).total.detach()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=0)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of any tensor that an operation returns."""

    num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.num_elements = max(self.num_elements, leaf.numel())
        return result


@pytest.mark.parametrize("num_tokens", [16, 64, 1024])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_no_tensor_grows_with_tokens_times_vocabulary(num_tokens: int, divergence: Divergence) -> None:
    vocabulary = 600
    case = Case(num_tokens, vocabulary=vocabulary, teacher_vocabulary=vocabulary)
    with chunks_of(16, vocabulary), LargestTensor() as seen:
        case.fused(divergence).total.backward()  # type: ignore[no-untyped-call]
    assert seen.num_elements == max(16 * vocabulary, vocabulary * 7, num_tokens * 7)


def test_low_precision_hidden_states_sum_their_head_gradient_in_float32() -> None:
    """The gradient of 4096 tokens in chunks stays within bf16's own rounding of the float64 gradient."""
    case = Case(4096, bias=False)
    (expected,) = torch.autograd.grad(case.plain(ReverseKL())[0].sum() / 100, [case.weight])
    weight = case.weight.detach().float().requires_grad_()
    case.student_head = OutputHead(weight, None, 1.0, None, 13)
    case.hidden = case.hidden.detach().to(torch.bfloat16).requires_grad_()
    head = case.teacher_head
    assert head.bias is not None
    case.teacher_head = OutputHead(head.weight.to(torch.bfloat16), head.bias.to(torch.bfloat16), 1.0, None, 13)
    case.teacher_hidden = case.teacher_hidden.to(torch.bfloat16)
    with chunks_of(16, 13):
        (found,) = torch.autograd.grad(case.fused(ReverseKL()).total, [weight])
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 2**-6


@pytest.mark.parametrize("is_trained", [True, False])
def test_a_head_that_is_not_trained_costs_no_gradient(is_trained: bool) -> None:
    """As beside an adapter: the products are both models' logits and the hidden gradient, 2·N·V·H each, and no fourth."""
    case = Case(64, bias=False)
    weight = case.weight.detach().requires_grad_(is_trained)
    case.student_head = OutputHead(weight, None, 1.0, None, 13)
    (expected,) = torch.autograd.grad(case.plain(ReverseKL())[0].sum() / 100, [case.hidden])
    counter = FlopCounterMode(display=False)
    with chunks_of(16, 13), counter:
        total = case.fused(ReverseKL()).total
    total.backward()  # type: ignore[no-untyped-call]
    assert case.hidden.grad is not None
    torch.testing.assert_close(case.hidden.grad, expected)
    assert (weight.grad is not None) == is_trained
    of_student, of_teacher = (2 * 64 * head.numel() for head in (weight, case.teacher_head.weight))
    assert counter.get_total_flops() == of_teacher + (3 if is_trained else 2) * of_student
