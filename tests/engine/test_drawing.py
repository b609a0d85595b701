"""Drawing in groups is the inverse of the distribution function over the whole vocabulary."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.drawing import drawn


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocabulary=st.sampled_from([1, 2, 255, 256, 257, 1000]),
    spread=st.sampled_from([0.1, 3.0, 20.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_token_is_that_of_the_running_sum_in_float64(
    seed: int, vocabulary: int, spread: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(5, vocabulary, generator=generator) * spread).to(dtype)
    uniforms = torch.rand(5, generator=generator, dtype=torch.float64)
    chosen, logprobs = drawn(logits, uniforms)
    expected = torch.log_softmax(logits.double(), -1)
    cumulative = expected.exp().cumsum(-1)
    for row, token in enumerate(chosen.tolist()):
        below = float(cumulative[row, token - 1]) if token else 0.0
        assert below - 1e-6 <= float(uniforms[row]) <= float(cumulative[row, token]) + 1e-6
    torch.testing.assert_close(logprobs.double(), expected.gather(-1, chosen[:, None])[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("possible", [[0], [299], [3, 255], [256, 298]])
def test_what_has_no_probability_is_never_drawn(possible: list[int], uniform: float) -> None:
    logits = torch.full((1, 300), -torch.inf).index_fill(1, torch.tensor(possible), 1.5)
    chosen, logprobs = drawn(logits, torch.tensor([uniform], dtype=torch.float64))
    assert chosen.item() in possible
    assert float(logprobs) == pytest.approx(-torch.tensor(float(len(possible))).log().item(), abs=1e-6)
