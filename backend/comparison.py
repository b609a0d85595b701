"""What the runs of an experiment say beside each other. Pure: computed from recorded figures, words included.

The terminal table of `incipit demo` and the dashboard's Compare page show the same comparison.
"""

from __future__ import annotations

import math
from typing import Literal

from backend.schemas import Evaluation, Run
from engine.estimators import mcnemar, wilson
from engine.flops import FlopLedger
from engine.frozen import Frozen
from engine.verdicts import Verdicts

_TELLING_ACCURACY = 0.1  # a teacher below this cannot show by accuracy whether a student follows it
_SIGNIFICANT = 0.05  # of the paired test, the counterpart of 95 % intervals
_EOS_GAP = 0.1  # a difference in EOS rate that is worth a word


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


class Comparison(Frozen):
    """Arms, cheapest last, with reference values and the sentences that the figures support."""

    target: float
    arms: list[Arm]
    base_accuracy: dict[str, float]
    """Accuracy of each student before training, by its path."""
    teacher_accuracy: float | None
    teacher_eos_rate: float | None
    sentences: list[str]


def compare(runs: list[tuple[Run, list[Evaluation]]], target: float = 0.95) -> Comparison:
    """The comparison of those runs that have succeeded; `target` is the accuracy for "compute to reach"."""
    done = [(run, evaluations) for run, evaluations in runs if run.state == "succeeded" and run.flops is not None]
    full = [run for run, _ in done if run.spec.trains_whole_completions and run.spec.training_flops_budget is None]
    baseline = max(full, key=lambda run: run.flops.training if run.flops else 0.0, default=None)
    of_baseline = next((_final(e).verdicts for run, e in done if baseline is not None and run.id == baseline.id), None)
    arms = [_arm(run, evaluations, baseline, of_baseline, target) for run, evaluations in done]
    arms.sort(key=lambda arm: (not arm.is_baseline, arm.saving is None))
    base = {run.spec.student.path: figure for run, e in done if (figure := _figure(e, "base", "accuracy")) is not None}
    teacher = next((figure for _, e in done if (figure := _figure(e, "teacher", "accuracy")) is not None), None)
    teacher_eos = next((figure for _, e in done if (figure := _figure(e, "teacher", "eos_rate")) is not None), None)
    return Comparison(
        target=target,
        arms=arms,
        base_accuracy=base,
        teacher_accuracy=teacher,
        teacher_eos_rate=teacher_eos,
        sentences=_sentences(arms, base, target, teacher, teacher_eos),
    )


def _final(evaluations: list[Evaluation]) -> Evaluation:
    """The evaluation of the kept checkpoint whose figures are reported."""
    students = [e for e in evaluations if e.subject == "student"]
    # Each new best is marked; the last mark is on the checkpoint that is kept.
    kept = [e for e in students if e.is_best] or students
    return next((e for e in students if e.split == "report"), None) or kept[-1]


def _paired_p(mine: Verdicts | None, theirs: Verdicts | None) -> float | None:
    if mine is None or theirs is None or mine.problems != theirs.problems:
        return None
    return mcnemar(mine.greedy(), theirs.greedy())


def _arm(
    run: Run, evaluations: list[Evaluation], baseline: Run | None, of_baseline: Verdicts | None, target: float
) -> Arm:
    students = [e for e in evaluations if e.subject == "student"]
    final = _final(evaluations)
    before = next((e for e in evaluations if e.subject == "base" and e.split == final.split), None)
    accuracy = final.metrics.get("accuracy") or 0.0
    low, high = wilson(accuracy, final.num_prompts)
    reached = [e.training_flops for e in students if e.split == "dev" and (e.metrics.get("accuracy") or 0.0) >= target]
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
        num_prompts=final.num_prompts,
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        mcnemar_p=_paired_p(final.verdicts, of_baseline) if baseline is not None and run.id != baseline.id else None,
        avg_at_k=final.metrics.get("avg_at_k"),
        avg_at_k_low=final.metrics.get("avg_at_k_low"),
        avg_at_k_high=final.metrics.get("avg_at_k_high"),
        samples_per_problem=final.verdicts.samples_per_problem if final.verdicts else 0,
        exact=final.metrics.get("exact"),
        eos_rate=final.metrics.get("eos_rate"),
        repetition=final.metrics.get("repetition"),
        reverse_kl_before=before.metrics.get("reverse_kl") if before else None,
        reverse_kl=final.metrics.get("reverse_kl"),
        share_inside=before.metrics.get("share_inside") if before and not is_full else None,
        tail_before=before.metrics.get("reverse_kl_beyond") if before and not is_full else None,
        tail_after=final.metrics.get("reverse_kl_beyond") if not is_full else None,
        flops=run.flops,
        training_seconds=run.training_seconds or 0.0,
        saving=baseline.flops.training / run.flops.training if comparable and baseline and baseline.flops else None,
        flops_to_target=min(reached, default=None),
        is_baseline=baseline is not None and run.id == baseline.id,
    )


def _figure(evaluations: list[Evaluation], subject: str, metric: str) -> float | None:
    mine = [e for e in evaluations if e.subject == subject]
    chosen = next((e for e in mine if e.split == "report"), None) or next(iter(mine), None)
    return None if chosen is None else chosen.metrics.get(metric)


def _sentences(
    arms: list[Arm], base: dict[str, float], target: float, teacher: float | None, teacher_eos: float | None
) -> list[str]:
    baseline = next((arm for arm in arms if arm.is_baseline), None)
    said = [_about(arm, baseline, base.get(arm.student), teacher_eos) for arm in arms if not arm.is_baseline]
    if teacher is not None and teacher < _TELLING_ACCURACY:
        said.insert(
            0,
            f"Accuracy cannot tell these arms apart, the teacher itself scores {teacher:.2f}: "
            "compare KL, EOS rate and repetition.",
        )
    if baseline is not None:
        reached = [arm for arm in arms if arm.flops_to_target is not None]
        cheapest = min(reached, key=lambda arm: arm.flops_to_target or 0.0, default=None)
        if cheapest is not None:
            line = f"Least compute to reach {target:.2f} on the dev prompts: {cheapest.name}, {si(cheapest.flops_to_target)}FLOP"
            if baseline.flops_to_target is not None and cheapest is not baseline:
                line += f" ({baseline.name} needs {si(baseline.flops_to_target)}FLOP)"
            said.append(line + "; evaluations are some steps apart, so this is an upper bound.")
    return [*said, *_over_seeds(arms)]


def _over_seeds(arms: list[Arm]) -> list[str]:
    """Mean and range of each variant that ran with several seeds; a word of caution for the rest."""
    by_variant: dict[str, list[float]] = {}
    for arm in arms:
        by_variant.setdefault(arm.variant or arm.name, []).append(arm.accuracy)
    said = [
        f"{variant} over {len(values)} seeds: mean {sum(values) / len(values):.3f}, "
        f"from {min(values):.3f} to {max(values):.3f}."
        for variant, values in by_variant.items()
        if len(values) > 1
    ]
    if any(len(values) == 1 for values in by_variant.values()):
        said.append("One seed for an arm gives no interval over seeds; the brackets are over prompts only.")
    return said


def _about(arm: Arm, baseline: Arm | None, before: float | None, teacher_eos: float | None) -> str:
    parts = [f"{arm.name}: {arm.accuracy:.3f} [{arm.accuracy_low:.3f}, {arm.accuracy_high:.3f}]"]
    if before is not None:
        parts.append(f"from {before:.3f} before training")
    if arm.avg_at_k is not None and arm.avg_at_k_low is not None and arm.avg_at_k_high is not None:
        interval = f"[{arm.avg_at_k_low:.3f}, {arm.avg_at_k_high:.3f}]"
        parts.append(f"avg@{arm.samples_per_problem} {arm.avg_at_k:.3f} {interval}")
    if baseline is not None and arm.saving is not None:
        times = f"{arm.saving:.1f}x fewer" if arm.saving >= 1 else f"{1 / arm.saving:.1f}x more"
        gap = arm.accuracy - baseline.accuracy
        overlap = arm.accuracy_low <= baseline.accuracy_high and baseline.accuracy_low <= arm.accuracy_high
        # The paired test sees what two separate intervals hide: whether one arm fails where the other does not.
        is_level = overlap if arm.mcnemar_p is None else arm.mcnemar_p >= _SIGNIFICANT
        verdict = "level with" if is_level else "above" if gap > 0 else "below"
        paired = "" if arm.mcnemar_p is None else f", McNemar p = {arm.mcnemar_p:.2g} on the same problems"
        parts.append(f"{verdict} {baseline.name} ({baseline.accuracy:.3f}{paired}) at {times} training FLOPs")
    if arm.share_inside is not None:
        parts.append(f"{arm.share_inside:.0%} of the divergence lay inside the {arm.region} at the start")
    if arm.tail_before is not None and arm.tail_after is not None:
        parts.append(f"divergence beyond it went from {arm.tail_before:.3f} to {arm.tail_after:.3f} nats per token")
    if arm.reverse_kl_before is not None and arm.reverse_kl is not None:
        parts.append(f"full-length reverse KL went from {arm.reverse_kl_before:.3f} to {arm.reverse_kl:.3f}")
    if arm.eos_rate is not None and teacher_eos is not None and abs(arm.eos_rate - teacher_eos) > _EOS_GAP:
        parts.append(f"{arm.eos_rate:.0%} of its texts end by themselves, {teacher_eos:.0%} of the teacher's")
    return ", ".join(parts) + "."


def si(value: float | None) -> str:
    """A number with three digits and its SI prefix, such as "47.3 G"; a dash for None."""
    if value is None:
        return "–"
    power = min(max(int(math.log10(value) // 3), 0), 6) if value > 0 else 0
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'E')[power]}"
