"""The profile of a step's traces against numpy, and within its bounds."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.token_trace import TokenTrace
from engine.trace_profile import MAX_BINS, MAX_TOKEN_TYPES, TraceProfile, bin_width, trace_profile


def _trace(token_ids: list[int], reverse_kl: list[float], *, overlap: float = 0.5) -> TokenTrace:
    """A trace with these tokens; of two candidates the models share this much."""
    length = len(token_ids)
    other = [2 * value for value in reverse_kl]
    return TokenTrace(
        prompt_texts=[], token_ids=token_ids, texts=[f"t{one}" for one in token_ids], flags=[0] * length,
        student_logprob=[0.0] * length, teacher_logprob=[0.0] * length, reverse_kl=reverse_kl, forward_kl=other, jsd=other,
        student_entropy=other, teacher_entropy=other, student_rank=[1] * length, teacher_rank=[1] * length,
        candidate_ids=[[0, 1]] * length,
        candidate_student_logprob=[[math.log(overlap / 2), 0.0]] * length,
        candidate_teacher_logprob=[[0.0, math.log(overlap / 2)]] * length,
        vocabulary_ids=[0, 1], vocabulary_texts=["a", "b"],
    )  # fmt: skip


_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(_lengths, st.integers(40, 3000), st.integers(0, 2**31))
def test_bins_are_means_and_quantiles_of_all_tokens_in_them(lengths: list[int], full: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [rng.exponential(1.0, length) for length in lengths]
    profile = trace_profile([_trace([1] * len(row), row.tolist()) for row in rows], full)
    width = bin_width(full, MAX_BINS)
    starts = range(0, -(-max(lengths) // width) * width, width)
    assert profile.rollouts == [sum(length > start for length in lengths) for start in starts]
    for at, start in enumerate(starts):
        inside = np.concatenate([row[start : start + width] for row in rows])
        assert profile.tokens[at] == len(inside)
        found = profile.values["reverse_kl"]
        expected = [inside.mean(), *np.quantile(inside, [0.1, 0.5, 0.9])]
        assert [found.mean[at], found.p10[at], found.p50[at], found.p90[at]] == pytest.approx(expected, rel=1e-5)
        assert profile.values["forward_kl"].mean[at] == pytest.approx(2 * inside.mean(), rel=1e-5)
        assert profile.values["overlap_mass"].mean[at] == pytest.approx(0.5, rel=1e-5)
    assert profile.reverse_kl == pytest.approx(sum(row.sum() for row in rows), rel=1e-5)


def test_token_types_come_with_the_largest_sum_first_and_no_more_than_are_kept() -> None:
    traces = [_trace([7, 8, 7], [0.5, 2.0, 0.75]), _trace([8, 9], [0.25, 0.0])]
    found = trace_profile(traces, 8).token_types
    assert [(one.token_id, one.text, one.count, one.reverse_kl) for one in found] == [
        (8, "t8", 2, 2.25), (7, "t7", 2, 1.25), (9, "t9", 1, 0.0),
    ]  # fmt: skip
    many = list(range(MAX_TOKEN_TYPES + 1))
    kept = trace_profile([_trace(many, [float(one) for one in many])], 4096).token_types
    assert [one.token_id for one in kept] == many[:0:-1]


@pytest.mark.parametrize(("length", "width"), [(1, 1), (512, 1), (513, 2), (1024, 2), (131_072, 256)])
def test_a_full_length_completion_never_has_more_bins_than_are_kept(length: int, width: int) -> None:
    assert bin_width(length, MAX_BINS) == width
    profile = trace_profile([_trace([1] * length, [0.5] * length)], length)
    assert len(profile.tokens) <= MAX_BINS
    assert sum(profile.tokens) == length
    assert TraceProfile.model_validate_json(profile.model_dump_json()) == profile


def test_a_profile_with_too_many_or_unequal_parts_is_no_profile() -> None:
    sound: dict[str, Any] = trace_profile([_trace([1], [0.5])], 1).model_dump()
    for changed in ({"tokens": [1, 1]}, {"rollouts": []}, {"tokens": [0]}, {"values": {}}):
        with pytest.raises(ValueError, match="must"):
            TraceProfile.model_validate(sound | changed)
    for field, value in (
        ("tokens", [1] * (MAX_BINS + 1)),
        ("token_types", sound["token_types"] * (MAX_TOKEN_TYPES + 1)),
    ):
        with pytest.raises(ValueError, match="at most"):
            TraceProfile.model_validate(sound | {field: value})
