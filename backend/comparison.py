"""What the runs of an experiment say beside each other. Pure: computed from recorded figures, words included.

The terminal table of `incipit demo` and the dashboard's Compare page show the same comparison.
"""

from __future__ import annotations

import math

from backend.arms import Arm, arm_of, final, variant_names
from backend.schemas import Evaluation, Run
from backend.seed_summary import SeedSummary, seed_sentences, summaries
from backend.unique_labels import run_labels
from engine.frozen import Frozen

TELLING_ACCURACY = 0.1  # a teacher below this cannot show by accuracy whether a student follows it
_SIGNIFICANT = 0.05  # of the paired test, the counterpart of 95 % intervals
_EOS_GAP = 0.1  # a difference in EOS rate that is worth a word


class Comparison(Frozen):
    """Arms, cheapest last, with reference values and the sentences that the figures support."""

    target: float
    arms: list[Arm]
    base_accuracy: dict[str, float]
    """Accuracy of each student before training, by its path."""
    teacher_accuracy: float | None
    teacher_eos_rate: float | None
    seeds: list[SeedSummary]
    """The arms by variant, in the order of `arms`."""
    sentences: list[str]

    @property
    def has_seeds(self) -> bool:
        """Whether a variant ran with more than one seed."""
        return any(one.num_seeds > 1 for one in self.seeds)


def compare(
    runs: list[tuple[Run, list[Evaluation]]], target: float = 0.95, flops_budget: float | None = None
) -> Comparison:
    """The comparison of those runs that have succeeded.

    `target` is the accuracy of "compute to reach", `flops_budget` the training FLOPs of "accuracy at"; None leaves it out.
    """
    done = [(run, evaluations) for run, evaluations in runs if run.state == "succeeded" and run.flops is not None]
    full = [run for run, _ in done if run.spec.trains_whole_completions and run.spec.training_flops_budget is None]
    baseline = max(full, key=lambda run: run.flops.training if run.flops else 0.0, default=None)
    of_baseline = next((final(e).verdicts for run, e in done if baseline is not None and run.id == baseline.id), None)
    labels, variants = run_labels([run for run, _ in runs]), variant_names(run for run, _ in runs)
    arms = [arm_of(run, labels[run.id], variants[run.id], e, baseline, of_baseline, target) for run, e in done]
    arms.sort(key=lambda arm: (not arm.is_baseline, arm.saving is None))
    seeds = summaries(arms, flops_budget)
    base = {run.spec.student.path: figure for run, e in done if (figure := _figure(e, "base", "accuracy")) is not None}
    teacher = next((figure for _, e in done if (figure := _figure(e, "teacher", "accuracy")) is not None), None)
    teacher_eos = next((figure for _, e in done if (figure := _figure(e, "teacher", "eos_rate")) is not None), None)
    return Comparison(
        target=target,
        arms=arms,
        base_accuracy=base,
        teacher_accuracy=teacher,
        teacher_eos_rate=teacher_eos,
        seeds=seeds,
        sentences=_sentences(arms, base, target, teacher, teacher_eos) + seed_sentences(seeds, target),
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
    if teacher is not None and teacher < TELLING_ACCURACY:
        said.insert(
            0,
            f"Accuracy cannot tell these arms apart, the teacher itself scores {teacher:.2f}: "
            "compare KL, EOS rate and repetition.",
        )
    if baseline is not None:
        reached = [arm for arm in arms if arm.flops_to_target is not None and arm.shares_problems]
        cheapest = min(reached, key=lambda arm: arm.flops_to_target or 0.0, default=None)
        if cheapest is not None:
            line = f"Least compute to reach {target:.2f} on the dev prompts: {cheapest.name}, {si(cheapest.flops_to_target)}FLOP"
            if baseline.flops_to_target is not None and cheapest is not baseline:
                line += f" ({baseline.name} needs {si(baseline.flops_to_target)}FLOP)"
            said.append(line + "; evaluations are some steps apart, so this is an upper bound.")
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
