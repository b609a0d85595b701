"""Several samples of each prompt: avg@k, pass@k and maj@k, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.estimators import (
    agreement,
    avg_at_k,
    bootstrap_interval,
    calibration_error,
    clustered_standard_error,
    maj_at_k,
    pass_at_k,
)
from engine.scorers import Mark


@dataclass(frozen=True)
class AnswerSamples:
    """What k samples of each prompt show."""

    num_right: list[int]
    """By prompt."""
    metrics: dict[str, float | None]


def answer_samples(marks: Sequence[Sequence[Mark]], seed: int) -> AnswerSamples:
    """The figures of `marks[prompt][sample]`, k marks for every prompt; `seed` is that of the bootstrap.

    answer_calibration_error is the ECE of the majority answer: its confidence is the share of samples that give it, and
    the outcome whether it is right (self-consistency as confidence; that CaOPD, arXiv 2604.16830, finds students
    over-confident after on-policy distillation is why it is measured, the measure is our reading).
    """
    k = len(marks[0])
    num_right = [sum(mark.is_right for mark in of_prompt) for of_prompt in marks]
    shares = [count / k for count in num_right]
    found = [[mark.found for mark in of_prompt] for of_prompt in marks]
    majorities = [
        maj_at_k(answers, [mark.is_right for mark in of_prompt])
        for answers, of_prompt in zip(found, marks, strict=True)
    ]
    low, high = bootstrap_interval(shares, seed)
    metrics: dict[str, float | None] = {
        "avg_at_k": avg_at_k(num_right, k),
        "avg_at_k_low": low,
        "avg_at_k_high": high,
        "avg_at_k_standard_error": clustered_standard_error(shares),
        "maj_at_k": sum(majorities) / len(majorities),
        "answer_calibration_error": calibration_error([agreement(answers) for answers in found], majorities),
    }
    for tries in _tries(k):
        metrics[f"pass_at_{tries}"] = sum(pass_at_k(count, k, tries) for count in num_right) / len(num_right)
    return AnswerSamples(num_right, metrics)


def _tries(k: int) -> list[int]:
    """The powers of two up to k, and k."""
    return sorted({*(2**power for power in range(k.bit_length()) if 2**power <= k), k})
