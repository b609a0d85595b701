"""Token weights against loops in numpy, and what each of them promises."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.objective_spec import TokenWeights
from engine.token_weights import (
    NoWeights,
    PositionLinear,
    PositionPower,
    RemainingAdvantage,
    TokenSignals,
    TokenWeighting,
    TopShare,
)
from tests.engine.references import Array
from tests.engine.references_weights import REFERENCES

WEIGHTINGS: list[TokenWeighting] = [
    NoWeights(),
    PositionPower(exponent=1),
    PositionPower(exponent=-0.7),
    PositionLinear(slope=1),
    PositionLinear(slope=-0.4),
    TopShare(share=0.5),
    TopShare(share=0.1),
    RemainingAdvantage(gamma=0.5),
]
every_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)

# Entropy, reverse KL and log-ratio of 1 to 12 tokens; in hundredths, so that scores tie exactly or differ clearly.
rollouts = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 400), min_size=n, max_size=n),
        st.lists(st.integers(0, 900), min_size=n, max_size=n),
        st.lists(st.integers(-900, 900), min_size=n, max_size=n),
    ).map(lambda lists: tuple(np.array(values) / 100 for values in lists))
)


def weights(weighting: TokenWeighting, columns: tuple[Array, ...]) -> Array:
    index = torch.arange(len(columns[0]), dtype=torch.float64)
    found = weighting.of_rollout(index, TokenSignals(*map(torch.as_tensor, columns)))
    return np.asarray(found.numpy())


def test_every_kind_of_weight_has_a_reference_and_is_tested() -> None:
    members = get_args(get_args(TokenWeights)[0])
    assert REFERENCES.keys() == {member.model_fields["kind"].default for member in members}
    assert {type(weighting) for weighting in WEIGHTINGS} == set(members)


@every_weighting
@given(rollouts)
def test_weights_are_those_of_the_reference(weighting: TokenWeighting, columns: tuple[Array, ...]) -> None:
    kind = type(weighting).model_fields["kind"].default
    np.testing.assert_allclose(weights(weighting, columns), REFERENCES[kind](weighting, columns), rtol=1e-12)


@every_weighting
@given(rollouts)
def test_weights_are_never_negative_and_have_mean_one_or_the_published_range(
    weighting: TokenWeighting, columns: tuple[Array, ...]
) -> None:
    found = weights(weighting, columns)
    assert found.min() >= 0
    if isinstance(weighting, RemainingAdvantage):
        assert found[0] == pytest.approx(1 + weighting.gamma)
        assert found.min() >= 1 - 1e-12
        assert np.all(np.diff(found) <= 1e-12)
    else:
        assert found.mean() == pytest.approx(1)


@pytest.mark.parametrize("weighting", WEIGHTINGS[1:5], ids=str)
def test_positions_rise_or_fall_with_the_sign(weighting: TokenWeighting) -> None:
    found = weights(weighting, (np.zeros(9),) * 3)
    rises = getattr(weighting, "exponent", None) == 1 or getattr(weighting, "slope", None) == 1
    assert np.all(np.diff(found) > 0) if rises else np.all(np.diff(found) < 0)


@given(rollouts, st.floats(0.01, 1))
def test_a_share_of_the_tokens_is_kept_rounded_up(columns: tuple[Array, ...], share: float) -> None:
    found = weights(TopShare(share=share), columns)
    assert np.count_nonzero(found) == math.ceil(share * len(found))


def test_unsure_and_confidently_wrong_tokens_are_kept_and_confidently_right_ones_are_not() -> None:
    entropy = np.array([3.0, 0.0, 0.0, 0.0])
    reverse_kl = np.array([0.0, 5.0, 0.1, 0.0])
    assert weights(TopShare(share=0.5), (entropy, reverse_kl, np.zeros(4))).tolist() == [2, 2, 0, 0]


def test_a_rollout_without_any_disagreement_is_weighted_evenly() -> None:
    found = weights(RemainingAdvantage(gamma=0.5), (np.zeros(5),) * 3)
    assert found.tolist() == [1.5] * 5
