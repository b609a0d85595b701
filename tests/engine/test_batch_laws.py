"""One mean over all completion tokens of the global batch: whatever the micro-batches, the padding and the order."""

import dataclasses
import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.batch import RolloutBatch, micro_batches
from engine.divergences import ReverseKL
from engine.language_model import LanguageModel
from engine.rollout import Rollout
from engine.student import Student
from engine.update import Update
from tests.engine.models import CPU, WORDS, fresh_random_model, random_model, tiny_model, tiny_spec

TEACHER = random_model(1, hidden=32)
EOS, PAD = 2, 0
Gradients = dict[str, Tensor]


def rollout(num_prompt: int, num_completion: int, seed: int, *, ends: bool = False) -> Rollout:
    """Random tokens, none of them EOS but the last one where it `ends`."""
    generator = random.Random(seed)
    completion = [generator.randrange(3, WORDS) for _ in range(num_completion)]
    if ends:
        completion[-1] = EOS
    return Rollout(
        prompt_index=seed,
        prompt_token_ids=[1, *(generator.randrange(3, WORDS) for _ in range(num_prompt - 1))],
        completion_token_ids=completion,
        completion_logprobs=[-1.0] * num_completion,
        finish_reason="eos" if ends else "length",
    )


def eight_rollouts() -> list[Rollout]:
    """Ragged prompts and completions; half of them end, half are cut."""
    return [rollout(1 + i % 5, 1 + (7 * i) % 11, i, ends=i % 2 == 0) for i in range(8)]


def update(
    rollouts: list[Rollout], *, micro_batch: int = 16, model: LanguageModel | None = None
) -> tuple[Update, Gradients]:
    """One update of a fresh float64 student by plain gradient descent with rate 1, so that the change is the gradient."""
    spec = tiny_spec(
        micro_batch_rollouts=micro_batch,
        optimizer={"learning_rate": 1.0, "warmup_steps": 0, "max_grad_norm": 1e6},
        sampling={"temperature": 0.7},
    )
    student = Student(model or fresh_random_model(0), spec)
    named = dict(student.model.module.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    student.optimizer = torch.optim.SGD(named.values(), lr=1.0)
    done = student.update(rollouts, TEACHER, 0)
    return done, {name: before[name] - parameter.detach() for name, parameter in named.items()}


def by_hand(rollouts: list[Rollout]) -> tuple[float, Gradients]:
    """The same from the models' own logits, one rollout at a time, without padding, shift index or fused loss."""
    model = fresh_random_model(0)
    total = torch.zeros((), dtype=torch.float64)
    for each in rollouts:
        token_ids = torch.tensor([each.prompt_token_ids + each.completion_token_ids])
        start = len(each.prompt_token_ids)
        mine = model.module(input_ids=token_ids[:, :-1]).logits[0, start - 1 :]
        with torch.no_grad():
            theirs = TEACHER.module(input_ids=token_ids[:, :-1]).logits[0, start - 1 :]
        total = (
            total + ReverseKL().between(torch.log_softmax(mine / 0.7, -1), torch.log_softmax(theirs / 0.7, -1)).sum()
        )
    loss = total / sum(len(each.completion_token_ids) for each in rollouts)
    loss.backward()  # type: ignore[no-untyped-call]
    named = model.module.named_parameters()
    return float(loss.detach()), {name: parameter.grad for name, parameter in named if parameter.grad is not None}


def assert_same(found: Gradients, expected: Gradients, tolerance: float = 1e-11) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_loss_and_gradients_are_those_of_one_mean_over_all_completion_tokens() -> None:
    """This holds prompt tokens unsupervised, rows cut at the horizon whole, and the shift right."""
    done, gradients = update(eight_rollouts())
    loss, expected = by_hand(eight_rollouts())
    assert done.loss == pytest.approx(loss, abs=1e-12)
    assert_same(gradients, expected)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 8])
def test_micro_batches_change_neither_loss_nor_gradient(micro_batch: int) -> None:
    whole, expected = update(eight_rollouts())
    parts, gradients = update(eight_rollouts(), micro_batch=micro_batch)
    assert parts.loss == pytest.approx(whole.loss, abs=1e-12)
    assert parts.position_count == whole.position_count
    assert parts.position_loss == pytest.approx(whole.position_loss, abs=1e-12)
    assert parts.student_entropy == pytest.approx(whole.student_entropy, abs=1e-12)
    assert parts.flops == whole.flops
    assert_same(gradients, expected)


@settings(max_examples=10)
@given(st.permutations(range(8)))
def test_the_order_of_rollouts_changes_nothing(order: list[int]) -> None:
    rollouts = eight_rollouts()
    straight, expected = update(rollouts, micro_batch=3)
    shuffled, gradients = update([rollouts[i] for i in order], micro_batch=3)
    assert shuffled.loss == pytest.approx(straight.loss, abs=1e-12)
    assert_same(gradients, expected)


@settings(max_examples=10)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 20), st.booleans()), min_size=1, max_size=6))
def test_ragged_batches_of_any_kind_follow_the_same_mean(shapes: list[tuple[int, int, bool]]) -> None:
    rollouts = [rollout(p, t, seed, ends=ends) for seed, (p, t, ends) in enumerate(shapes)]
    done, gradients = update(rollouts, micro_batch=4)
    loss, expected = by_hand(rollouts)
    assert done.loss == pytest.approx(loss, abs=1e-12)
    assert_same(gradients, expected)


@pytest.mark.parametrize("pad", [PAD, 1, EOS, 50])
def test_the_padding_token_does_not_matter(pad: int) -> None:
    _, expected = update(eight_rollouts())
    model = dataclasses.replace(fresh_random_model(0), pad_token_id=pad)
    _, gradients = update(eight_rollouts(), model=model)
    assert_same(gradients, expected)


def test_an_eos_is_supervised_also_when_it_is_the_padding_token() -> None:
    rollouts = [rollout(2, 3, 0, ends=True), rollout(2, 9, 1)]
    batch = RolloutBatch.collate(rollouts, EOS, CPU)
    assert batch.target_ids[batch.row == 0].tolist() == rollouts[0].completion_token_ids
    assert batch.target_ids[batch.row == 0][-1] == EOS
    model = dataclasses.replace(fresh_random_model(0), pad_token_id=EOS)
    done, gradients = update(rollouts, model=model)
    loss, expected = by_hand(rollouts)
    assert done.num_tokens == 12
    assert done.loss == pytest.approx(loss, abs=1e-12)
    assert_same(gradients, expected)


def test_a_row_cut_at_the_horizon_keeps_all_its_tokens_and_gets_no_eos() -> None:
    cut = rollout(3, 5, 0)
    batch = RolloutBatch.collate([cut, rollout(1, 2, 1, ends=True)], PAD, CPU)
    mine = batch.row == 0
    assert batch.target_ids[mine].tolist() == cut.completion_token_ids
    assert batch.position[mine].tolist() == [0, 1, 2, 3, 4]
    assert batch.token_ids[0].tolist() == cut.prompt_token_ids + cut.completion_token_ids
    assert EOS not in batch.token_ids[0]


def test_no_prompt_token_is_a_target() -> None:
    rollouts = eight_rollouts()
    batch = RolloutBatch.collate(rollouts, PAD, CPU)
    width = batch.token_ids.shape[1]
    # The hidden state at p predicts token p + 1, so the first target stands right behind the prompt.
    predicted = batch.hidden_index % width + 1
    for row, each in enumerate(rollouts):
        start, end = len(each.prompt_token_ids), len(each.prompt_token_ids) + len(each.completion_token_ids)
        assert predicted[batch.row == row].tolist() == list(range(start, end))
        assert (batch.hidden_index // width)[batch.row == row].unique().tolist() == [row]


def test_tokens_behind_the_horizon_have_no_part_in_the_gradient() -> None:
    """A prefix of 4 gives the gradient of the long rollouts' first 4 positions, whatever stands behind them."""
    long = [rollout(3, 12, seed) for seed in range(4)]
    cut = [
        dataclasses.replace(each, completion_token_ids=each.completion_token_ids[:4], completion_logprobs=[-1.0] * 4)
        for each in long
    ]
    _, gradients = update(cut)
    model = fresh_random_model(0)
    token_ids = torch.tensor([each.prompt_token_ids + each.completion_token_ids for each in long])
    mine = torch.log_softmax(model.module(input_ids=token_ids).logits / 0.7, -1)
    with torch.no_grad():
        theirs = torch.log_softmax(TEACHER.module(input_ids=token_ids).logits / 0.7, -1)
    ReverseKL().between(mine, theirs)[:, 2:6].mean().backward()  # type: ignore[no-untyped-call]
    assert_same(gradients, {n: p.grad for n, p in model.module.named_parameters() if p.grad is not None})


@given(st.lists(st.integers(1, 2500), min_size=1, max_size=9), st.integers(1, 5))
def test_a_cpu_cuts_where_padding_and_passes_cost_least(lengths: list[int], size: int) -> None:
    """Against every way to cut the sorted rollouts that the limits allow."""
    rollouts = [rollout(1, 1, index) for index in range(len(lengths))]
    long = [
        dataclasses.replace(one, completion_token_ids=[5] * length, completion_logprobs=[0.0] * length)
        for one, length in zip(rollouts, lengths, strict=True)
    ]
    groups = micro_batches(long, size, CPU)
    assert sorted(each.prompt_index for group in groups for each in group) == list(range(len(lengths)))

    def cost(widths: list[list[int]]) -> float:
        too_many = any(len(rows) > size or len(rows) > max(1, 2048 // max(rows)) for rows in widths)
        return math.inf if too_many else sum(len(rows) * max(rows) + 64 for rows in widths)

    ordered = sorted(length + 1 for length in lengths)
    cuts = (
        [0, *cut, len(ordered)]
        for number in range(len(ordered))
        for cut in itertools.combinations(range(1, len(ordered)), number)
    )
    least = min(cost([ordered[a:b] for a, b in itertools.pairwise(cut)]) for cut in cuts)
    assert cost([[1 + len(each.completion_token_ids) for each in group] for group in groups]) == least


def test_a_gpu_takes_as_many_as_it_may() -> None:
    groups = micro_batches(eight_rollouts(), 3, torch.device("cuda"))
    assert [len(group) for group in groups] == [3, 3, 2]
    long = [
        dataclasses.replace(each, completion_token_ids=[5] * 600, completion_logprobs=[0.0] * 600)
        for each in eight_rollouts()
    ]
    assert [len(group) for group in micro_batches(long, 8, torch.device("cuda"))] == [8]


def test_no_rollouts_make_no_micro_batch() -> None:
    assert micro_batches([], 3, CPU) == micro_batches([], 3, torch.device("cuda")) == []


def test_a_student_that_is_its_teacher_learns_nothing() -> None:
    student = Student(fresh_random_model(1, hidden=32), tiny_spec())
    student.optimizer = torch.optim.SGD(student.model.module.parameters(), lr=1.0)
    before = [parameter.detach().clone() for parameter in student.model.module.parameters()]
    done = student.update(eight_rollouts(), TEACHER, 0)
    assert done.loss == pytest.approx(0, abs=1e-14)
    assert done.grad_norm < 1e-13
    for old, new in zip(before, student.model.module.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old, rtol=0, atol=1e-13)


def test_the_loss_falls_on_one_batch() -> None:
    spec = tiny_spec(optimizer={"learning_rate": 3e-3, "warmup_steps": 0})
    student, teacher = Student(tiny_model(), spec), tiny_model("teacher", "teacher")
    losses = [student.update(eight_rollouts(), teacher, 0).loss for _ in range(12)]
    assert losses[-1] < losses[0] / 2, losses


def test_bfloat16_states_reach_the_loss_in_bfloat16_and_weights_stay_float32() -> None:
    model = dataclasses.replace(tiny_model(), autocast_dtype=torch.bfloat16)
    with model.autocast():
        assert model.hidden(torch.tensor([[1, 5, 6]])).dtype == torch.bfloat16
    student = Student(model, tiny_spec())
    exact = Student(tiny_model(), tiny_spec()).update(eight_rollouts(), TEACHER, 0).loss
    assert student.update(eight_rollouts(), TEACHER, 0).loss == pytest.approx(exact, rel=0.02)
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}
