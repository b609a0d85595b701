"""How sure a student is beside how sure its teacher is, token by token."""

from __future__ import annotations

from engine.estimators import calibration_error
from engine.scoring import TokenColumns

CALIBRATION_METRICS = ("calibration_error", "overconfidence")


def calibration_metrics(columns: list[TokenColumns]) -> dict[str, float | None]:
    """Expected calibration error against the teacher on full-length samples, and the signed gap.

    Confidence is the student's probability of its most likely token; the outcome is the teacher's probability of that same
    token, which is the expected agreement when the next token is drawn from the teacher. A student equal to its teacher
    has both 0; `overconfidence` = mean(confidence - outcome) is positive when it is surer than its teacher. Motivated by
    CaOPD (arXiv 2604.16830: on-policy distillation makes students over-confident); the measure is our reading.
    """
    confidences: list[float] = []
    outcomes: list[float] = []
    for column in columns:  # the first candidate is the student's most likely token
        confidences += column.candidate_student_logprob[:, 0].exp().clamp(max=1).tolist()
        outcomes += column.candidate_teacher_logprob[:, 0].exp().clamp(max=1).tolist()
    return {
        "calibration_error": calibration_error(confidences, outcomes),
        "overconfidence": (sum(confidences) - sum(outcomes)) / len(confidences),
    }
