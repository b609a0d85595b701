"""One finished run as an arm of a comparison. Pure: computed from recorded figures."""

from __future__ import annotations

from typing import Literal

from backend.schemas import Evaluation, Run
from engine.estimators import mcnemar, wilson
from engine.flops import FlopLedger
from engine.frozen import Frozen
from engine.verdicts import Verdicts


class Arm(Frozen):
    """One finished run."""

    run_id: str
    name: str
    variant: str
    seed: int
    note: str
    student: str
    prefix: str
    region: Literal["prefix", "window", "suffix"]
    """Where its loss applies."""
    num_prompts: int
    """Prompts behind accuracy and exact."""
    accuracy: float
    accuracy_low: float
    """Wilson interval over prompts, 95 %; it says nothing about other seeds."""
    accuracy_high: float
    mcnemar_p: float | None
    """Exact p-value of McNemar's test against the baseline, paired by problem; None without a baseline on the same problems."""
    avg_at_k: float | None
    """Mean over problems of the share of right samples; None when no samples were taken."""
    avg_at_k_low: float | None
    """95 % interval over problems, the samples of a problem as one cluster."""
    avg_at_k_high: float | None
    samples_per_problem: int
    exact: float | None
    eos_rate: float | None
    repetition: float | None
    """Share of repeated 4-grams in greedy texts."""
    reverse_kl_before: float | None
    """Of the base student, mean over full-length samples, nats per token."""
    reverse_kl: float | None
    """The same after training, at the best checkpoint."""
    share_inside: float | None
    """Share of the base student's reverse KL where the arm's first step applies its loss; None for whole completions."""
    tail_before: float | None
    """Reverse KL beyond the horizon before training, nats per token."""
    tail_after: float | None
    """The same after training, at the best checkpoint."""
    flops: FlopLedger
    training_seconds: float
    saving: float | None
    """The baseline's training FLOPs / this arm's; None for arms with another student."""
    flops_to_target: float | None
    """Training FLOPs at the first dev evaluation that reached the target accuracy; None when none did."""
    is_baseline: bool
    dev_curve: list[tuple[float, float]]
    """Training FLOPs and accuracy of the student's dev evaluations, in their order."""


def final(evaluations: list[Evaluation]) -> Evaluation:
    """The evaluation of the kept checkpoint whose figures are reported."""
    students = [e for e in evaluations if e.subject == "student"]
    # Each new best is marked; the last mark is on the checkpoint that is kept.
    kept = [e for e in students if e.is_best] or students
    return next((e for e in students if e.split == "report"), None) or kept[-1]


def _paired_p(mine: Verdicts | None, theirs: Verdicts | None) -> float | None:
    if mine is None or theirs is None or mine.problems != theirs.problems:
        return None
    return mcnemar(mine.greedy(), theirs.greedy())


def arm_of(
    run: Run, evaluations: list[Evaluation], baseline: Run | None, of_baseline: Verdicts | None, target: float
) -> Arm:
    """A run with its evaluations as an arm; `of_baseline` are the baseline's verdicts, `target` the accuracy to reach."""
    students = [e for e in evaluations if e.subject == "student"]
    kept = final(evaluations)
    before = next((e for e in evaluations if e.subject == "base" and e.split == kept.split), None)
    accuracy = kept.metrics.get("accuracy") or 0.0
    low, high = wilson(accuracy, kept.num_prompts)
    curve = [(e.training_flops, e.metrics.get("accuracy") or 0.0) for e in students if e.split == "dev"]
    is_full = run.spec.trains_whole_completions
    comparable = baseline is not None and baseline.spec.student == run.spec.student
    assert run.flops is not None
    return Arm(
        run_id=run.id,
        name=run.name,
        variant=run.variant,
        seed=run.seed,
        note=run.note,
        student=run.spec.student.path,
        prefix=run.prefix,
        region="prefix" if run.spec.loss_region.kind == "whole" else run.spec.loss_region.kind,
        num_prompts=kept.num_prompts,
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        mcnemar_p=_paired_p(kept.verdicts, of_baseline) if baseline is not None and run.id != baseline.id else None,
        avg_at_k=kept.metrics.get("avg_at_k"),
        avg_at_k_low=kept.metrics.get("avg_at_k_low"),
        avg_at_k_high=kept.metrics.get("avg_at_k_high"),
        samples_per_problem=kept.verdicts.samples_per_problem if kept.verdicts else 0,
        exact=kept.metrics.get("exact"),
        eos_rate=kept.metrics.get("eos_rate"),
        repetition=kept.metrics.get("repetition"),
        reverse_kl_before=before.metrics.get("reverse_kl") if before else None,
        reverse_kl=kept.metrics.get("reverse_kl"),
        share_inside=before.metrics.get("share_inside") if before and not is_full else None,
        tail_before=before.metrics.get("reverse_kl_beyond") if before and not is_full else None,
        tail_after=kept.metrics.get("reverse_kl_beyond") if not is_full else None,
        flops=run.flops,
        training_seconds=run.training_seconds or 0.0,
        saving=baseline.flops.training / run.flops.training if comparable and baseline and baseline.flops else None,
        flops_to_target=min((flops for flops, reached in curve if reached >= target), default=None),
        is_baseline=baseline is not None and run.id == baseline.id,
        dev_curve=curve,
    )
