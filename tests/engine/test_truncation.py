"""Which tokens truncated sampling keeps, and with what probability."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LogitsProcessorList, MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from engine.truncation import EVERY_TOKEN, Truncation

_SIZE = 7
seeds = st.integers(0, 10_000)


def some_logprobs(seed: int, rows: int = 1) -> Tensor:
    noise = torch.randn(rows, _SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.log_softmax(noise * 2, -1)


@given(st.integers(0, _SIZE - 1), st.floats(0.05, 1), st.floats(0, 1), seeds)
def test_kept_are_the_fewest_most_likely_tokens(top_k: int, top_p: float, min_p: float, seed: int) -> None:
    logprobs = some_logprobs(seed)
    p = np.exp(logprobs[0].numpy())
    kept = np.argsort(-p)[: top_k or _SIZE]
    shares = p[kept] / p[kept].sum()
    count = next(n for n in range(1, len(kept) + 1) if shares[:n].sum() >= top_p - 1e-12 or n == len(kept))
    kept = [token for token in kept[:count] if p[token] >= min_p * p.max() * (1 - 1e-12)]
    expected = np.zeros(_SIZE)
    expected[kept] = p[kept] / p[kept].sum()
    found = Truncation(top_k, top_p, min_p).of(logprobs).exp()[0].numpy()
    assert found == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, _SIZE), st.floats(0.05, 0.999), st.floats(0.001, 1), seeds)
def test_all_three_together_are_what_transformers_makes_of_them(
    top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    logprobs = some_logprobs(seed, rows=4)
    theirs = LogitsProcessorList([TopKLogitsWarper(top_k), TopPLogitsWarper(top_p), MinPLogitsWarper(min_p)])
    expected = torch.log_softmax(theirs(torch.zeros(4, 1, dtype=torch.long), logprobs.clone()), -1)
    torch.testing.assert_close(Truncation(top_k, top_p, min_p).of(logprobs), expected)


def test_without_limits_truncation_changes_nothing() -> None:
    assert not EVERY_TOKEN
    logprobs = some_logprobs(0, rows=4)
    torch.testing.assert_close(EVERY_TOKEN.of(logprobs), logprobs)


def test_of_equally_likely_tokens_min_p_keeps_all() -> None:
    even = torch.full((1, 4), 0.25, dtype=torch.float64).log()
    torch.testing.assert_close(Truncation(min_p=1.0).of(even), even)
