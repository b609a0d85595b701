"""Each divergence with each token weight, stop ids merged and guarded: one sum over the global batch, whatever its parts."""

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from engine.batch import RolloutBatch
from engine.divergences import ReverseKL
from engine.flops import FlopLedger, signal_flops
from engine.fused_loss import Heads
from engine.language_model import LanguageModel
from engine.objective import Objective
from engine.objective_spec import Divergence
from engine.rollout import Rollout
from engine.student import Student
from engine.token_weighting import weights_of_batch
from engine.token_weights import NoWeights, RemainingAdvantage, TokenWeighting, TopShare
from tests.engine.models import fresh_random_model, random_model, tiny_spec
from tests.engine.objectives import DIVERGENCES
from tests.engine.references import cross_entropy, entropy
from tests.engine.references_weights import REFERENCES, termination_kl
from tests.engine.test_batch_laws import eight_rollouts, rollout
from tests.engine.test_fused_loss import LargestTensor
from tests.engine.test_token_weights import WEIGHTINGS

STUDENT = dataclasses.replace(fresh_random_model(0), eos_token_ids=frozenset({2, 9}))
TEACHER = dataclasses.replace(random_model(1, hidden=32), eos_token_ids=frozenset({5}))
STOPS = [2, 5, 9]
TEMPERATURE, GUARD = 0.7, 0.3


def gradients(
    rollouts: list[Rollout], *, model: LanguageModel = STUDENT, **changes: Any
) -> tuple[float, dict[str, float], list[Tensor]]:
    """Loss, sums of what is measured, and the gradient of every parameter."""
    spec = tiny_spec(sampling={"temperature": TEMPERATURE}, **changes)
    model.module.zero_grad()
    sums = Student(model, spec).accumulate(rollouts, TEACHER)
    found = [parameter.grad.clone() for parameter in model.module.parameters() if parameter.grad is not None]
    return sums.loss, dict(sums.measures), found


@pytest.mark.parametrize("weighting", [WEIGHTINGS[1], WEIGHTINGS[4], WEIGHTINGS[5], WEIGHTINGS[7]], ids=str)
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_micro_batches_order_and_padding_change_nothing(divergence: Divergence, weighting: TokenWeighting) -> None:
    changes: dict[str, Any] = {
        "divergence": divergence,
        "token_weights": weighting,
        "merge_stop_tokens": True,
        "termination_guard": {"kind": "forward_kl", "weight": GUARD},
    }
    whole = gradients(eight_rollouts(), micro_batch_rollouts=8, **changes)
    shuffled = eight_rollouts()
    random.Random(3).shuffle(shuffled)
    other_pad = dataclasses.replace(STUDENT, pad_token_id=50)
    parts = gradients(shuffled, model=other_pad, micro_batch_rollouts=3, **changes)
    assert parts[0] == pytest.approx(whole[0], abs=1e-11)
    assert parts[1] == pytest.approx(whole[1], abs=1e-10)
    for found, expected in zip(parts[2], whole[2], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def logprobs_of(model: LanguageModel, each: Rollout) -> Tensor:
    """[n, V] from the model's own logits on one rollout, without padding."""
    token_ids = torch.tensor([each.prompt_token_ids + each.completion_token_ids])
    logits = model.module(input_ids=token_ids[:, :-1]).logits[0, len(each.prompt_token_ids) - 1 :]
    return torch.log_softmax(logits / TEMPERATURE, -1)[each.supervised.start : each.supervised.stop]


def by_hand(rollouts: list[Rollout], weighting: TokenWeighting) -> tuple[float, list[Tensor]]:
    """Reverse KL with weights and guard: weights in numpy, the gradient by autograd of the weighted sum over all rollouts."""
    STUDENT.module.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    kind = type(weighting).model_fields["kind"].default
    for each in rollouts:
        student = logprobs_of(STUDENT, each)
        with torch.no_grad():
            teacher = logprobs_of(TEACHER, each)
        p, q = student.detach().exp().numpy(), teacher.exp().numpy()
        ids = np.array(each.completion_token_ids)[each.supervised.start : each.supervised.stop]
        rows = np.arange(len(ids))
        log_ratio = np.log(q[rows, ids]) - np.log(p[rows, ids])
        weights = REFERENCES[kind](weighting, (entropy(p), cross_entropy(p, q) - entropy(p), log_ratio))
        stop, go_on = (student[:, STOPS].logsumexp(-1), (1 - student[:, STOPS].exp().sum(-1)).log())
        chance = torch.from_numpy(q[:, STOPS].sum(-1))
        coin = chance * (chance.log() - stop) + (1 - chance) * ((1 - chance).log() - go_on)
        np.testing.assert_allclose(coin.detach().numpy(), termination_kl(p, q, STOPS), rtol=1e-8, atol=1e-12)
        total = total + (torch.from_numpy(weights) * ReverseKL().between(student, teacher) + GUARD * coin).sum()
    loss = total / sum(len(each.supervised) for each in rollouts)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), [p.grad.clone() for p in STUDENT.module.parameters() if p.grad is not None]


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
@pytest.mark.parametrize("window", [(0, None), (2, 7)])
def test_loss_and_gradient_are_those_of_the_weighted_mean_over_all_supervised_tokens(
    weighting: TokenWeighting, window: tuple[int, int | None]
) -> None:
    cut = [dataclasses.replace(each, supervised_start=window[0], supervised_end=window[1]) for each in eight_rollouts()]
    rollouts = [each for each in cut if each.supervised]
    loss, _, found = gradients(
        rollouts,
        micro_batch_rollouts=3,
        token_weights=weighting,
        termination_guard={"kind": "forward_kl", "weight": GUARD},
    )
    expected_loss, expected = by_hand(rollouts, weighting)
    assert loss == pytest.approx(expected_loss, abs=1e-11)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_the_divergence_is_measured_without_weights_and_guard() -> None:
    rollouts = eight_rollouts()
    plain, measured, _ = gradients(rollouts)
    assert measured == {}
    weighted, measured, _ = gradients(rollouts, token_weights=WEIGHTINGS[1])
    num_tokens = sum(len(each.supervised) for each in rollouts)
    assert measured["divergence"] / num_tokens == pytest.approx(plain)
    assert weighted != pytest.approx(plain, rel=1e-3)
    guarded, measured, _ = gradients(rollouts, termination_guard={"kind": "forward_kl", "weight": GUARD})
    assert guarded == pytest.approx(plain + GUARD * measured["termination_guard"] / num_tokens)


@pytest.mark.parametrize("weighting", [TopShare(), RemainingAdvantage()], ids=str)
def test_the_signals_of_weights_need_no_tensor_of_tokens_times_vocabulary(
    weighting: TokenWeighting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.fused_loss._CHUNK_ENTRIES", 16 * STUDENT.head.vocabulary)
    long = [rollout(2, 200, seed) for seed in range(8)]
    batch = RolloutBatch.collate(long, 0, STUDENT.device)
    states = [torch.randn(1600, width, dtype=torch.float64) for width in (16, 32)]
    heads = Heads(STUDENT.head, TEACHER.head, 1.0)
    with LargestTensor() as seen:
        found = weights_of_batch(weighting, batch, *states, heads=heads, objective=Objective(ReverseKL()))
    assert found is not None
    assert seen.num_elements < 3 * 1600 + 1  # the three columns; tokens times vocabulary would be 129,600


@pytest.mark.parametrize("weighting", WEIGHTINGS[1:], ids=str)
def test_flops_of_the_signals_are_counted_as_torch_counts_them(weighting: TokenWeighting) -> None:
    rollouts = eight_rollouts()
    batch = RolloutBatch.collate(rollouts, 0, STUDENT.device)
    states = [torch.randn(len(batch.row), width, dtype=torch.float64) for width in (16, 32)]
    heads = Heads(STUDENT.head, TEACHER.head, 1.0)
    with FlopCounterMode(display=False) as counter:
        weights_of_batch(weighting, batch, *states, heads=heads, objective=Objective(ReverseKL()))
    extra = signal_flops(STUDENT.shape, TEACHER.shape, len(batch.row)) if weighting.needs_signals else FlopLedger()
    assert counter.get_total_flops() == extra.training
    ledgers = [
        Student(STUDENT, tiny_spec(token_weights=each)).accumulate(rollouts, TEACHER).flops
        for each in (weighting, NoWeights())
    ]
    assert ledgers[0] == ledgers[1] + extra


def test_without_weights_nothing_is_computed() -> None:
    batch = RolloutBatch.collate(eight_rollouts(), 0, STUDENT.device)
    states = [torch.randn(len(batch.row), width, dtype=torch.float64) for width in (16, 32)]
    heads = Heads(STUDENT.head, TEACHER.head, 1.0)
    assert weights_of_batch(NoWeights(), batch, *states, heads=heads, objective=Objective(ReverseKL())) is None
