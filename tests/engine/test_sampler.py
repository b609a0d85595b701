"""The decode loop: greedy as transformers', stops at the horizon, and tokens that depend on nothing but their key."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import StopRequested
from engine.flops import rollout_flops, rollout_ledger
from engine.language_model import LanguageModel
from engine.prompts import read_prompts
from engine.rollout import Rollout, RolloutRequest, uniforms
from engine.sampler import Sampler
from tests.engine.models import WORDS, random_model, tiny_model

MODEL = random_model(0)  # float64: no rounding can turn a token


def requests(count: int, *, num_rollouts: int = 1, visit: int = 1) -> list[RolloutRequest]:
    """Prompts of 1 to 7 random tokens."""
    generator = random.Random(7)
    return [
        RolloutRequest(i, [1, *(generator.randrange(3, WORDS) for _ in range(i % 7))], num_rollouts, visit)
        for i in range(count)
    ]


def sample(
    asked: list[RolloutRequest], horizon: int, *, model: LanguageModel = MODEL, seed: int = 3, temperature: float = 1.0
) -> list[Rollout]:
    return Sampler(model, seed, temperature).sample(asked, horizon)


def tokens(rollouts: list[Rollout]) -> list[list[int]]:
    return [rollout.completion_token_ids for rollout in rollouts]


def tiny_requests(model: LanguageModel, count: int, *, extra: bool = False) -> list[RolloutRequest]:
    """Prompts of the development set; with `extra`, some already have a part of their completion."""
    asked = []
    for i, row in enumerate(read_prompts("builtin:tiny/data/dev.jsonl", "path", limit=count)):
        words = (row.completion or "").split()[: (5 * i) % 13 if extra else 0]
        asked.append(RolloutRequest(i, model.tokenizer(" ".join([row.prompt, *words]))["input_ids"], 1, 0))
    return asked


@pytest.mark.parametrize(("name", "count", "extra"), [("student-plan", 3, True), ("teacher", 2, False)])
def test_greedy_tokens_are_those_of_generate(name: str, count: int, extra: bool) -> None:
    model = tiny_model(name)
    asked = tiny_requests(model, count, extra=extra)
    found = sample(asked, 224, model=model, temperature=0)
    for request, rollout in zip(asked, found, strict=True):
        prompt = torch.tensor([request.prompt_token_ids])
        with torch.inference_mode():
            row = model.module.generate(
                prompt, do_sample=False, max_new_tokens=224, attention_mask=torch.ones_like(prompt)
            )
        assert rollout.completion_token_ids == row[0, len(request.prompt_token_ids) :].tolist()
        assert rollout.finish_reason == "eos"


@settings(max_examples=20)
@given(st.integers(1, 40))
def test_no_completion_is_longer_than_the_horizon_and_cut_ones_have_no_eos(horizon: int) -> None:
    rollouts = sample(requests(9), horizon)
    assert [rollout.prompt_index for rollout in rollouts] == list(range(9))
    for rollout in rollouts:
        ids = rollout.completion_token_ids
        assert 1 <= len(ids) <= horizon
        assert len(rollout.completion_logprobs) == len(ids)
        assert 2 not in ids[:-1]
        if rollout.finish_reason == "eos":
            assert ids[-1] == 2
        else:
            assert len(ids) == horizon
            assert ids[-1] != 2


def test_a_shorter_horizon_gives_the_prefix_of_a_longer_one() -> None:
    short, long = sample(requests(40), 8), sample(requests(40), 32)
    assert tokens(short) == [ids[:8] for ids in tokens(long)]
    for cut, whole in zip(short, long, strict=True):
        assert cut.completion_logprobs == pytest.approx(whole.completion_logprobs[:8], abs=1e-6)
    assert any(rollout.finish_reason == "eos" for rollout in long)


def test_tokens_do_not_depend_on_the_company_or_the_order() -> None:
    asked = requests(12)
    together = tokens(sample(asked, 24))
    assert [tokens(sample([request], 24))[0] for request in asked] == together
    order = random.Random(1).sample(range(12), 12)
    shuffled = tokens(sample([asked[i] for i in order], 24))
    assert shuffled == [together[i] for i in order]


def test_float32_tokens_of_the_tiny_pair_do_not_depend_on_company_or_padding() -> None:
    model = tiny_model()
    asked = tiny_requests(model, 4, extra=True)
    together = tokens(sample(asked, 200, model=model))
    assert [tokens(sample([request], 200, model=model))[0] for request in asked] == together


def test_more_requests_than_one_decode_batch_holds_come_back_in_order() -> None:
    asked = requests(150, num_rollouts=2)
    found = sample(asked, 3)
    assert [rollout.prompt_index for rollout in found] == [i for i in range(150) for _ in range(2)]
    assert tokens(found)[100:102] == tokens(sample([asked[50]], 3))


def test_how_many_are_decoded_together_changes_no_token_and_no_more_are() -> None:
    model = random_model(3)
    requests = [RolloutRequest(index, [1 + index % 5] * (1 + index % 3), 2, 0) for index in range(7)]
    together, steps = [], []
    for number in (128, 5, 1):
        stepped = []
        sampler = Sampler(replace(model, decoded_rollouts=number), 0, 1.0, lambda stepped=stepped: stepped.append(0))
        together.append([one.completion_token_ids for one in sampler.sample(requests, 6)])
        steps.append(len(stepped))
    assert together[0] == together[1] == together[2]
    # Two rollouts of a prompt stay together, so that 5 hold two prompts and 1 holds one: 1, 4 and 7 batches.
    assert steps[0] <= 6 < steps[1] <= 24
    assert steps[1] < steps[2] <= 42


def test_seed_prompt_visit_and_rollout_each_change_the_tokens() -> None:
    ids = [1, 10, 11]
    base = tokens(sample([RolloutRequest(0, ids, 2, 1)], 30))
    assert base[0] != base[1]
    assert base == tokens(sample([RolloutRequest(0, ids, 2, 1)], 30))
    assert base != tokens(sample([RolloutRequest(0, ids, 2, 1)], 30, seed=4))
    assert base != tokens(sample([RolloutRequest(1, ids, 2, 1)], 30))
    assert base != tokens(sample([RolloutRequest(0, ids, 2, 2)], 30))


def test_the_first_rollouts_do_not_depend_on_how_many_there_are() -> None:
    few, many = sample(requests(3, num_rollouts=2), 12), sample(requests(3, num_rollouts=5), 12)
    assert tokens(few) == [ids for i in range(3) for ids in tokens(many)[5 * i : 5 * i + 2]]


def test_rollouts_of_a_prompt_share_its_prefill() -> None:
    asked = [RolloutRequest(0, list(range(3, 23)), 6, 1)]
    sampler = Sampler(MODEL, 3, 1.0)
    sampler.sample(asked, 1)
    assert sampler.executed.rollout == sampler.executed.rollout_prefill == MODEL.shape.prefill(20)
    sampler = Sampler(MODEL, 3, 1.0)
    rollouts = sampler.sample(asked, 5)
    # The first token comes out of the prefill; an EOS or a last token is never run through the model.
    needed = rollout_ledger(MODEL.shape, 20, [len(rollout.completion_token_ids) for rollout in rollouts])
    assert sampler.executed.rollout == pytest.approx(needed.rollout, rel=1e-12)


def test_ended_rows_leave_the_batch() -> None:
    asked = [RolloutRequest(i, [1, 10, 11], 1, 1) for i in range(60)]
    sampler = Sampler(MODEL, 3, 1.0)
    rollouts = sampler.sample(asked, 60)
    lengths = [len(rollout.completion_token_ids) for rollout in rollouts]
    assert min(lengths) < max(lengths)
    needed = sum(rollout_flops(MODEL.shape, 3, [length]) for length in lengths)
    assert sampler.executed.rollout == pytest.approx(needed, rel=1e-12)


def test_sampling_can_be_stopped_between_two_tokens() -> None:
    calls = 0

    def on_token() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise StopRequested

    with pytest.raises(StopRequested):
        Sampler(MODEL, 3, 1.0, on_token).sample(requests(4), 30)
    assert calls == 3


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_logprobs_are_those_of_a_fresh_forward_pass(temperature: float) -> None:
    for rollout in sample(requests(8), 20, temperature=temperature):
        ids = torch.tensor(rollout.completion_token_ids)
        sequence = torch.tensor([rollout.prompt_token_ids + rollout.completion_token_ids])
        with torch.no_grad():
            logits = MODEL.module(input_ids=sequence[:, :-1]).logits[0, len(rollout.prompt_token_ids) - 1 :]
        expected = torch.log_softmax(logits / temperature, -1).gather(1, ids[:, None])[:, 0]
        assert rollout.completion_logprobs == pytest.approx(expected.tolist(), abs=1e-5)


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom; cells with fewer than 5 expected are put together."""
    expected = probabilities * counts.sum()
    rare = expected < 5
    observed, wanted = counts[~rare], expected[~rare]
    if rare.any():
        observed = np.append(observed, counts[rare].sum())
        wanted = np.append(wanted, expected[rare].sum())
    return float(((observed - wanted) ** 2 / wanted).sum()), len(wanted) - 1


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("by", ["rollout", "prompt"])
def test_first_tokens_come_as_often_as_the_model_says(temperature: float, by: str) -> None:
    ids, total = [1, 10, 11], 4000
    if by == "rollout":
        asked = [RolloutRequest(0, ids, 1000, visit) for visit in range(4)]
    else:
        asked = [RolloutRequest(i, ids, 1, 1) for i in range(total)]
    first = np.array([rollout.completion_token_ids[0] for rollout in sample(asked, 1, temperature=temperature)])
    with torch.no_grad():
        logits = MODEL.module(input_ids=torch.tensor([ids])).logits[0, -1]
    probabilities = torch.softmax(logits / temperature, -1).numpy()
    statistic, freedom = chi_square(np.bincount(first, minlength=WORDS), probabilities)
    assert freedom > 10
    # Wilson-Hilferty: the cube root of chi²/freedom is nearly normal; 4 standard deviations, the seed is fixed.
    normal = (math.cbrt(statistic / freedom) - 1 + 2 / (9 * freedom)) / math.sqrt(2 / (9 * freedom))
    assert abs(normal) < 4, (statistic, freedom)


def test_second_tokens_are_independent_of_the_first_noise() -> None:
    """Noise of neighbouring positions is not correlated: |r| < 4/sqrt(n)."""
    noise = np.stack([uniforms(5, RolloutRequest(i, [1], 1, 1), 0, 2) for i in range(4000)])
    assert abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 4 / math.sqrt(4000)
    assert abs(noise.mean() - 0.5) < 4 / math.sqrt(12 * noise.size)


@given(
    st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 1023)),
        min_size=2,
        max_size=8,
        unique=True,
    )
)
def test_every_key_has_noise_of_its_own(keys: list[tuple[int, int, int, int]]) -> None:
    drawn = {tuple(uniforms(seed, RolloutRequest(p, [1], 1, visit), r, 4)) for seed, p, visit, r in keys}
    assert len(drawn) == len(keys)


def test_shorter_noise_is_the_beginning_of_longer_noise() -> None:
    request = RolloutRequest(3, [1], 1, 2)
    assert uniforms(1, request, 0, 5).tolist() == uniforms(1, request, 0, 50)[:5].tolist()
