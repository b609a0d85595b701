"""What the lens is sent: the columns of a token trace, rounded, and the limits of its colour scales."""

import math
from typing import Any

from backend.schemas import RolloutDetail

METRICS = (
    "reverse_kl",
    "forward_kl",
    "jsd",
    "delta_logprob",
    "rank_difference",
    "student_entropy",
    "teacher_entropy",
)
_ROUNDED = (
    "student_logprob",
    "teacher_logprob",
    "reverse_kl",
    "forward_kl",
    "jsd",
    "student_entropy",
    "teacher_entropy",
)
_DIGITS = 4  # traces hold float16: more digits would be noise and bytes
_DELTA_LIMIT_NATS = 5.0  # a token e^5 = 148 times as likely under one model: stronger is rare and needs no more shades
_RANK_LIMIT = 100.0
_ENTROPY_LIMIT_NATS = 4.0  # as unsure as between 55 equal tokens
_SMALLEST_LIMIT_NATS = 1e-3  # a run without any divergence still needs a scale


def lens_payload(rollout: RolloutDetail, metric: str, token: int | None) -> dict[str, Any]:
    """A JSON-ready document, columnar: one list per quantity, T long. `token` is a position, counted from 0."""
    trace = rollout.trace
    run_limit = max(rollout.run_p99_reverse_kl, _SMALLEST_LIMIT_NATS)
    columns = {name: [round(value, _DIGITS) for value in getattr(trace, name)] for name in _ROUNDED}
    return {
        "rev": rollout.id,
        "metric": metric,
        "token": token if token is not None and 0 <= token < len(trace.texts) else None,
        "horizon": rollout.horizon,
        "trained_start": rollout.trained_start,
        "prompt": trace.prompt_texts,
        "texts": trace.texts,
        "flags": trace.flags,
        "token_ids": trace.token_ids,
        "student_rank": trace.student_rank,
        "teacher_rank": trace.teacher_rank,
        **columns,
        "candidate_ids": trace.candidate_ids,
        "candidate_student_logprob": [_rounded(row) for row in trace.candidate_student_logprob],
        "candidate_teacher_logprob": [_rounded(row) for row in trace.candidate_teacher_logprob],
        "vocabulary": dict(zip(map(str, trace.vocabulary_ids), trace.vocabulary_texts, strict=True)),
        "limits": {
            "reverse_kl": run_limit,
            "forward_kl": run_limit,
            "jsd": math.log(2),
            "delta_logprob": _DELTA_LIMIT_NATS,
            "rank_difference": _RANK_LIMIT,
            "student_entropy": _ENTROPY_LIMIT_NATS,
            "teacher_entropy": _ENTROPY_LIMIT_NATS,
        },
        "limit_words": {
            "reverse_kl": "99th percentile of the run",
            "forward_kl": "the run's reverse KL, 99th percentile",
            "jsd": "its largest possible value",
            "delta_logprob": "fixed",
            "rank_difference": "fixed, logarithmic",
            "student_entropy": "fixed",
            "teacher_entropy": "fixed",
        },
    }


def _rounded(row: list[float]) -> list[float]:
    return [round(value, _DIGITS) for value in row]
