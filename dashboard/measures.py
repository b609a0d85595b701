"""What runs can be compared by: figures of full-length dev evaluations, in words."""

from collections.abc import Sequence
from dataclasses import dataclass

from backend.comparison import TELLING_ACCURACY
from backend.schemas import Evaluation, Run


@dataclass(frozen=True)
class Measure:
    """A metric of an evaluation, see engine/events.py."""

    key: str
    name: str
    """As the title of an axis."""
    is_share: bool = False
    """Whether it lies in [0, 1]."""
    falls: bool | None = False
    """Whether smaller is better; None when neither is, but nearness to the teacher."""


MEASURES = (
    Measure("accuracy", "accuracy", is_share=True),
    Measure("forward_kl_on_teacher_texts", "forward KL on teacher texts, nats", falls=True),
    Measure("reverse_kl", "reverse KL on own samples, nats", falls=True),
    Measure("forward_kl", "forward KL on own samples, nats", falls=True),
    Measure("avg_at_k", "avg@k", is_share=True),
    Measure("sampled_eos_rate", "share of samples that end", is_share=True, falls=None),
    Measure("sampled_repetition", "repeated 4-grams of samples", is_share=True, falls=None),
    Measure("sampled_mean_tokens", "tokens of samples", falls=None),
    Measure("calibration_error", "calibration error", is_share=True, falls=True),
)


def measured(runs: Sequence[tuple[Run, list[Evaluation]]]) -> list[Measure]:
    """Those that some dev evaluation of a student has, in their order; accuracy always."""
    keys = {"accuracy"} | {
        key
        for _, evaluations in runs
        for one in evaluations
        if one.subject == "student" and one.split == "dev"
        for key, value in one.metrics.items()
        if value is not None
    }
    return [measure for measure in MEASURES if measure.key in keys]


def telling(runs: Sequence[tuple[Run, list[Evaluation]]], measures: Sequence[Measure]) -> int:
    """Place of the measure to begin with: accuracy, or the first divergence where the teacher solves next to nothing."""
    solved = [
        one.metrics.get("accuracy")
        for _, evaluations in runs
        for one in evaluations
        if one.subject == "teacher" and one.split == "dev"
    ]
    known = [one for one in solved if one is not None]
    if not known or max(known) >= TELLING_ACCURACY:
        return 0
    return next((at for at, measure in enumerate(measures) if measure.falls), 0)
