"""What the lens is sent: the columns of a token trace, rounded, the limits of its colour scales, and what to say of it."""

import math
from typing import Any

from backend.playground import AnswerDetail
from backend.schemas import RolloutDetail
from engine.token_trace import TokenTrace

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
    start, horizon = rollout.trained_start, rollout.horizon
    return {
        "rev": rollout.id,
        "metric": metric,
        "horizon": horizon,
        "trained_start": start,
        "lines": [
            (start, f"training starts here (token {start + 1})"),
            (horizon, f"training stops here (L = {horizon})"),
        ],
        "pair": "",
        "compact": False,
        **_columns(rollout.trace, token),
        **_limits(rollout.run_p99_reverse_kl, "99th percentile of the run", "the run's reverse KL, 99th percentile"),
    }


def answer_payload(answer: AnswerDetail, metric: str, first_difference: int | None) -> dict[str, Any]:
    """The same of an answer of the playground, which has no horizon; a line stands where it parts from another one."""
    lines = [] if first_difference is None else [(first_difference, "first difference")]
    return {
        "rev": f"{answer.question_id}/{answer.answer.row}/{first_difference}",
        "metric": metric,
        "horizon": None,
        "trained_start": 0,
        "lines": lines,
        "pair": answer.pair,
        "compact": True,
        **_columns(answer.trace, None),
        **_limits(answer.limit_nats, answer.limit_words, f"that of the reverse KL, {answer.limit_words}"),
    }


def _columns(trace: TokenTrace, token: int | None) -> dict[str, Any]:
    return {
        "token": token if token is not None and 0 <= token < len(trace.texts) else None,
        "prompt": trace.prompt_texts,
        "texts": trace.texts,
        "flags": trace.flags,
        "token_ids": trace.token_ids,
        "student_rank": trace.student_rank,
        "teacher_rank": trace.teacher_rank,
        **{name: _rounded(getattr(trace, name)) for name in _ROUNDED},
        "candidate_ids": trace.candidate_ids,
        "candidate_student_logprob": [_rounded(row) for row in trace.candidate_student_logprob],
        "candidate_teacher_logprob": [_rounded(row) for row in trace.candidate_teacher_logprob],
        "vocabulary": dict(zip(map(str, trace.vocabulary_ids), trace.vocabulary_texts, strict=True)),
    }


def _limits(limit_nats: float, reverse_words: str, forward_words: str) -> dict[str, Any]:
    limit = max(limit_nats, _SMALLEST_LIMIT_NATS)
    return {
        "limits": {
            "reverse_kl": limit,
            "forward_kl": limit,
            "jsd": math.log(2),
            "delta_logprob": _DELTA_LIMIT_NATS,
            "rank_difference": _RANK_LIMIT,
            "student_entropy": _ENTROPY_LIMIT_NATS,
            "teacher_entropy": _ENTROPY_LIMIT_NATS,
        },
        "limit_words": {
            "reverse_kl": reverse_words,
            "forward_kl": forward_words,
            "jsd": "its largest possible value",
            "delta_logprob": "fixed",
            "rank_difference": "fixed, logarithmic",
            "student_entropy": "fixed",
            "teacher_entropy": "fixed",
        },
    }


def _rounded(row: list[float]) -> list[float]:
    return [round(value, _DIGITS) for value in row]
