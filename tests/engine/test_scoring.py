"""Overlap mass against its formula, on random models in float64."""

import numpy as np
import torch

from engine.rollout import Rollout
from engine.scoring import TokenColumns, score_rollouts
from tests.engine.models import random_model
from tests.engine.references import overlap_mass

ROLLOUT = Rollout(0, [1, 5, 9, 11], [7, 8, 30, 31, 2], [0.0] * 5, "eos")


def scored(teacher_seed: int) -> TokenColumns:
    (columns,) = score_rollouts(
        random_model(1), random_model(teacher_seed), [ROLLOUT], temperature=1.3, top_k=2, micro_batch=4
    )
    return columns


def test_overlap_mass_is_the_sum_of_the_smaller_probabilities() -> None:
    token_ids = torch.tensor([[*ROLLOUT.prompt_token_ids, *ROLLOUT.completion_token_ids]])
    with torch.no_grad():
        student, teacher = (
            (model.module(input_ids=token_ids).logits[0, 3:-1] / 1.3).numpy()
            for model in (random_model(1), random_model(2))
        )
    expected = overlap_mass(student, teacher)
    assert 0.01 < expected.min() < expected.max() < 0.99
    np.testing.assert_allclose(scored(2).overlap_mass.numpy(), expected, rtol=1e-10)


def test_a_model_shares_all_its_mass_with_itself() -> None:
    np.testing.assert_allclose(scored(1).overlap_mass.numpy(), 1.0, rtol=1e-12)
