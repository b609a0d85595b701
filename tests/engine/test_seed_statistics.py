"""Intervals over seeds, against numeric integration, printed tables and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.seed_statistics import mean_interval, ratio_interval, t_quantile_95

POSITIVE = st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=8)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 7, 10, 29, 30, 49])
def test_the_quantile_has_95_percent_of_the_integrated_density_within(freedom: int) -> None:
    t = t_quantile_95(freedom)
    x = np.linspace(-t, t, 200_001)
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    density = scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    assert np.trapezoid(density, x) == pytest.approx(0.95, abs=1e-8)


@pytest.mark.parametrize(("freedom", "printed"), [(1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042)])
def test_the_quantile_is_that_of_printed_tables(freedom: int, printed: float) -> None:
    assert t_quantile_95(freedom) == pytest.approx(printed, abs=5e-4)


def test_one_seed_has_no_interval() -> None:
    assert mean_interval([0.9]) is None
    assert ratio_interval([1.0], [2.0, 3.0]) is None


def test_intervals_of_normal_figures_hold_the_truth_95_times_in_100() -> None:
    draws = np.random.default_rng(0).normal(3.0, 0.5, size=(4000, 3))
    bounds = [mean_interval(row.tolist()) for row in draws]
    held = np.mean([bound is not None and bound[0] <= 3.0 <= bound[1] for bound in bounds])
    assert held == pytest.approx(0.95, abs=0.011)  # three standard errors


def test_ratios_of_lognormal_figures_hold_the_truth_at_least_95_times_in_100() -> None:
    """Rounding the degrees of freedom down errs on the side of width."""
    draws = np.random.default_rng(1).normal(0.0, [0.1, 0.3], size=(4000, 4, 2))
    found = [ratio_interval(np.exp(row[:, 0] + math.log(5)).tolist(), np.exp(row[:3, 1]).tolist()) for row in draws]
    held = np.mean([one is not None and one[1] <= 5.0 <= one[2] for one in found])
    assert 0.94 <= held <= 0.99


@given(POSITIVE, POSITIVE)
def test_the_ratio_turned_round_is_its_inverse(first: list[float], second: list[float]) -> None:
    there, back = ratio_interval(first, second), ratio_interval(second, first)
    assert there is not None
    assert back is not None
    ratio, low, high = there
    assert low <= ratio <= high
    assert back == pytest.approx((1 / ratio, 1 / high, 1 / low), rel=1e-9)


@given(POSITIVE, st.floats(1e-3, 1e3))
def test_intervals_scale_with_their_figures(values: list[float], factor: float) -> None:
    before, after = mean_interval(values), mean_interval([value * factor for value in values])
    assert before is not None
    assert after == pytest.approx([bound * factor for bound in before], rel=1e-6, abs=1e-9 * factor * max(values))
