"""Where is the signal: divergence and entropy by position on the student's own full-length samples. T positions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from engine.analyses.setup import Subjects
from engine.analysis_spec import AnalysisRow, DivergenceByPosition
from engine.scoring import TokenColumns, score_rollouts
from engine.trace_profile import first_tokens

_Z95 = 1.959964
_RESAMPLES = 1000
_SHARES = (0.5, 0.8, 0.9, 0.95)
_GROUP = 16  # rollouts between two lines of progress


def divergence_by_position(asked: DivergenceByPosition, subjects: Subjects) -> tuple[list[AnalysisRow], list[str]]:
    """A row for each completion position and the sentences that the rows support."""
    columns = _columns(asked, subjects)
    reverse = _padded([c.reverse_kl for c in columns])
    details = {
        "forward_kl": _padded([c.forward_kl for c in columns]),
        "student_entropy": _padded([c.student_entropy for c in columns]),
        "teacher_entropy": _padded([c.teacher_entropy for c in columns]),
        "top1_agreement": _padded([c.top1_agrees.float() for c in columns]),
    }
    count = np.sum(~np.isnan(reverse), axis=0)
    mean = np.nanmean(reverse, axis=0)
    cumulative = np.nancumsum(np.nansum(reverse, axis=0))
    total = cumulative[-1]
    rows = []
    for at in range(reverse.shape[1]):
        half = _Z95 * _standard_error(reverse[:, at])
        rows.append(
            AnalysisRow(
                start=at, end=at + 1, value=float(mean[at]), low=max(0.0, float(mean[at] - half)), high=float(mean[at] + half),
                count=int(count[at]),
                details={name: float(np.nanmean(values[:, at])) for name, values in details.items()}
                | {"cumulative_share": float(cumulative[at] / total) if total > 0 else None},
            )
        )  # fmt: skip
    return rows, _sentences(reverse, subjects.spec.seed)


def _columns(asked: DivergenceByPosition, subjects: Subjects) -> list[TokenColumns]:
    spec = subjects.spec
    prompts = subjects.data.dev[: asked.num_prompts]
    columns: list[TokenColumns] = []
    for first in range(0, len(prompts), _GROUP):
        subjects.report(0.1 + 0.9 * first / len(prompts), f"prompt {first + 1} of {len(prompts)}")
        group = prompts[first : first + _GROUP]
        rollouts = subjects.sample(
            subjects.student, group, [[] for _ in group], spec.max_completion_tokens, spec.sampling.temperature
        )
        columns += score_rollouts(
            subjects.student, subjects.teacher, rollouts,
            temperature=spec.sampling.temperature, top_k=1, micro_batch=spec.usual_micro_batch,
        )  # fmt: skip
    return columns


def shortest_prefix(reverse: np.ndarray, share: float) -> int:
    """Tokens of the shortest prefix that holds `share` of all divergence; [rollouts, T] with NaN behind each end."""
    cumulative = np.cumsum(np.nansum(reverse, axis=0))
    return int(np.searchsorted(cumulative, share * cumulative[-1])) + 1


def _sentences(reverse: np.ndarray, seed: int) -> list[str]:
    if not np.nansum(reverse) > 0:
        return ["Student and teacher agree everywhere: there is nothing to distil."]
    # Whole rollouts are drawn again: tokens of one text are not independent.
    draws = np.random.Generator(np.random.Philox(key=seed)).integers(0, len(reverse), (_RESAMPLES, len(reverse)))
    sums = np.nan_to_num(reverse)
    sentences = []
    for share in _SHARES:
        lengths = [shortest_prefix(sums[draw], share) for draw in draws]
        low, high = np.percentile(lengths, [2.5, 97.5])
        found = shortest_prefix(reverse, share)
        sentences.append(f"{share:.0%} of the reverse KL lies in the {first_tokens(found)} [{low:.0f}, {high:.0f}].")
    mean_length = float(np.mean(np.sum(~np.isnan(reverse), axis=1)))
    return [
        *sentences,
        f"A completion has {mean_length:.0f} tokens on average; brackets are 95 % over {len(reverse)} texts.",
    ]


def _padded(columns: list[Tensor]) -> np.ndarray:
    """[rollouts, T] with NaN behind the end of each rollout."""
    padded = torch.nn.utils.rnn.pad_sequence(
        [c.double() for c in columns], batch_first=True, padding_value=float("nan")
    )
    return np.asarray(padded)


def _standard_error(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(np.std(known, ddof=1) / np.sqrt(len(known))) if len(known) > 1 else 0.0
