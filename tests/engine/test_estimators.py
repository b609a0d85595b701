"""Estimators against formulas of another form: enumeration, binomials in fractions, numpy."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.estimators import (
    agreement,
    avg_at_k,
    bootstrap_interval,
    calibration_error,
    clustered_interval,
    clustered_standard_error,
    maj_at_k,
    mcnemar,
    pass_at_k,
    wilson,
)

VERDICTS = st.lists(st.booleans(), min_size=1, max_size=9)
SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=30)


@given(VERDICTS, st.data())
def test_pass_at_k_is_the_share_of_all_subsets_with_a_right_sample(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    subsets = list(itertools.combinations(right, k))
    share = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(sum(right), len(right), k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_of_many_samples_equals_binomials_in_fractions() -> None:
    n, c, k = 1024, 3, 512
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(c, n, k) == pytest.approx(float(exact), abs=1e-12)


def test_pass_at_1_is_avg_at_k() -> None:
    right = [0, 3, 8, 5]
    assert sum(pass_at_k(c, 8, 1) for c in right) / 4 == pytest.approx(avg_at_k(right, 8))
    assert avg_at_k(right, 8) == 0.5


@pytest.mark.parametrize(
    ("found", "right", "expected"),
    [
        (["7", "7", "3"], [True, True, False], 1.0),
        (["7", "3", "3"], [True, False, False], 0.0),
        (["7", "3"], [True, False], 0.5),
        (["3", "7", "5"], [False, True, False], 1 / 3),
        ([None, None, "7"], [False, False, True], 1.0),
        ([None, None], [False, False], 0.0),
    ],
)
def test_the_majority_decides(found: list[str | None], right: list[bool], expected: float) -> None:
    assert maj_at_k(found, right) == pytest.approx(expected)
    assert maj_at_k(found[::-1], right[::-1]) == pytest.approx(expected)


def test_agreement_is_the_share_of_the_most_frequent_answer() -> None:
    assert agreement(["7", "7", "3", None]) == 0.5
    assert agreement([None, None]) == 0.0


@given(SHARES)
def test_the_clustered_standard_error_is_that_of_a_mean_of_independent_problems(shares: list[float]) -> None:
    expected = np.std(shares, ddof=1) / np.sqrt(len(shares))
    assert clustered_standard_error(shares) == pytest.approx(expected, abs=1e-12)
    low, high = clustered_interval(shares)
    assert 0 <= low <= np.mean(shares) + 1e-12
    assert np.mean(shares) - 1e-12 <= high <= 1


def test_repeating_the_samples_of_each_problem_does_not_narrow_the_interval() -> None:
    shares = [0.25, 0.5, 1.0, 0.0]
    by_sample = [1, 0, 0, 0] + [1, 1, 0, 0] + [1] * 4 + [0] * 4
    repeated = [sum(by_sample[4 * i : 4 * i + 4] * 100) / 400 for i in range(4)]
    assert clustered_interval(repeated) == clustered_interval(shares)


def test_bootstrap_and_standard_error_agree_on_many_problems() -> None:
    shares = np.random.Generator(np.random.Philox(5)).random(400).tolist()
    assert bootstrap_interval(shares, seed=1) == pytest.approx(clustered_interval(shares), abs=0.004)


def test_the_bootstrap_draws_follow_from_the_seed() -> None:
    shares = np.random.Generator(np.random.Philox(6)).random(50).tolist()
    assert bootstrap_interval(shares, seed=1) == bootstrap_interval(shares, seed=1)
    assert bootstrap_interval(shares, seed=1) != bootstrap_interval(shares, seed=2)


def test_wilson_interval_matches_published_values() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@given(VERDICTS, st.randoms(use_true_random=False))
def test_mcnemar_counts_the_sign_flips_that_are_at_least_as_uneven(first: list[bool], random: object) -> None:
    second = [bool(random.getrandbits(1)) for _ in first]  # type: ignore[attr-defined]
    differences = [a - b for a, b in zip(first, second, strict=True) if a != b]
    flips = [abs(sum(signs)) for signs in itertools.product((1, -1), repeat=len(differences))]
    expected = sum(flip >= abs(sum(differences)) for flip in flips) / len(flips)
    assert mcnemar(first, second) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_mcnemar_holds_for_thousands_of_problems() -> None:
    assert mcnemar([True] * 3000 + [False] * 2900, [False] * 3000 + [True] * 2900) == pytest.approx(0.197, abs=2e-3)
    assert mcnemar([True, False], [True, False]) == 1.0


def test_calibration_error_of_known_bins() -> None:
    # Bin [0.9, 1]: three at 0.95, two right; bin [0.5, 0.6): one at 0.5, right.
    error = calibration_error([0.95, 0.95, 0.95, 0.5], [1, 1, 0, 1])
    assert error == pytest.approx(0.75 * abs(0.95 - 2 / 3) + 0.25 * abs(0.5 - 1))


@given(SHARES)
def test_outcomes_equal_to_the_confidences_are_calibrated(shares: list[float]) -> None:
    assert calibration_error(shares, shares) == pytest.approx(0, abs=1e-12)


def test_a_confidence_of_one_falls_into_the_last_bin() -> None:
    assert calibration_error([1.0, 0.95], [0.0, 0.0]) == pytest.approx(0.975)
