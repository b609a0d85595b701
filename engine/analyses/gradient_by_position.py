"""Which positions move the weights: the gradient of the loss restricted to bins of completion positions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from engine.analyses.setup import Subjects
from engine.analysis_spec import AnalysisRow, GradientByPosition
from engine.rollout import Rollout
from engine.student import Student
from engine.trace_profile import first_tokens

_HALVES = 2  # the spread between two halves of the prompts is the only interval a gradient norm has cheaply


def gradient_by_position(asked: GradientByPosition, subjects: Subjects) -> tuple[list[AnalysisRow], list[str]]:
    """A row for each bin: norm of the gradient of the mean loss on the bin's tokens, its cosine with the gradient of the
    mean loss on all tokens, and the bin's share of that gradient's length (the bins' shares add up to 1)."""
    spec = subjects.spec
    prompts = subjects.data.train[: asked.num_prompts]
    subjects.report(0.1, f"the student writes {len(prompts)} texts")
    rollouts = subjects.sample(
        subjects.student, prompts, [[] for _ in prompts], spec.max_completion_tokens, spec.sampling.temperature
    )
    student = Student(subjects.student, spec)
    longest = max(len(rollout.completion_token_ids) for rollout in rollouts)
    edges = list(range(0, longest, asked.bin_tokens))
    whole = _gradient(student, subjects, rollouts, 0, longest)
    num_tokens = sum(len(rollout.completion_token_ids) for rollout in rollouts)
    rows = []
    for number, start in enumerate(edges):
        end = min(start + asked.bin_tokens, longest)
        subjects.report(0.2 + 0.8 * number / len(edges), f"gradient of tokens {start} to {end - 1}")
        gradient = _gradient(student, subjects, rollouts, start, end)
        halves = [
            float(_gradient(student, subjects, rollouts[half::_HALVES], start, end).norm()) for half in range(_HALVES)
        ]
        count = sum(len(_cut(rollout, start, end).supervised) for rollout in rollouts)
        along = float(gradient @ whole / whole.norm().clamp(min=1e-30))
        norm = float(gradient.norm())
        rows.append(
            AnalysisRow(
                start=start, end=end, value=norm, low=min(norm, *halves), high=max(norm, *halves), count=count,
                details={
                    "cosine": along / norm if norm > 0 else None,
                    "share": count / num_tokens * along / float(whole.norm()) if float(whole.norm()) > 0 else None,
                },
            )
        )  # fmt: skip
    return rows, _sentences(rows)


def _cut(rollout: Rollout, start: int, end: int) -> Rollout:
    return replace(rollout, supervised_start=start, supervised_end=end)


def _gradient(student: Student, subjects: Subjects, rollouts: list[Rollout], start: int, end: int) -> Tensor:
    """The flattened gradient of the mean loss on completion positions [start, end); zeros when no text reaches them."""
    cut = [one for rollout in rollouts if (one := _cut(rollout, start, end)).supervised]
    student.optimizer.zero_grad(set_to_none=True)
    if cut:
        student.accumulate(cut, subjects.teacher)
    parts = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in student.parameter_names]
    return torch.cat(parts).double()


def _sentences(rows: list[AnalysisRow]) -> list[str]:
    loudest = max(rows, key=lambda row: row.value)
    shares = [row.details["share"] or 0.0 for row in rows]
    said = [
        f"The strongest gradient per token is that of tokens {loudest.start} to {loudest.end - 1}: norm {loudest.value:.3g}."
    ]
    running = 0.0
    for row, share in zip(rows, shares, strict=True):
        running += share
        if running >= 0.8:
            said.append(f"{running:.0%} of the whole completion's gradient is that of the {first_tokens(row.end)}.")
            break
    against = [row for row in rows if (row.details["cosine"] or 0.0) < 0]
    if against:
        said.append(f"{len(against)} of {len(rows)} bins pull against the whole completion's gradient.")
    return said
