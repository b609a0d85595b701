"""The seeds of a variant summed up: means with intervals, and how much less compute than the baseline it needs. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from backend.arms import Arm
from engine.frozen import Frozen
from engine.seed_statistics import mean_interval, ratio_interval


class SeedSummary(Frozen):
    """All finished runs of one variant. Intervals are over seeds, 95 %, and None with one seed."""

    variant: str
    num_seeds: int
    is_baseline: bool
    accuracy: float
    """Mean over seeds, each of its best checkpoint on the report prompts, or on the dev prompts where there are none."""
    accuracy_interval: tuple[float, float] | None
    accuracy_range: tuple[float, float]
    """The worst and the best seed."""
    training_flops: float
    """Mean over seeds."""
    num_reached: int
    """Seeds with a dev evaluation at the target accuracy."""
    flops_to_target: float | None
    """Geometric mean over seeds; None unless all have reached it."""
    times_less: float | None
    """The baseline variant's FLOPs to the target / this one's; None when not all seeds of both have reached it."""
    times_less_interval: tuple[float, float] | None
    accuracy_at_budget: float | None
    """Mean over seeds of the best dev accuracy within the FLOPs asked about; None when a seed has no evaluation there."""
    accuracy_at_budget_interval: tuple[float, float] | None


def summaries(arms: Sequence[Arm], flops_budget: float | None) -> list[SeedSummary]:
    """One per variant, in the order of `arms`; each is compared with the baseline's if student and problems are the same."""
    by_variant: dict[str, list[Arm]] = {}
    for arm in arms:
        by_variant.setdefault(arm.variant, []).append(arm)
    baseline = next((group for group in by_variant.values() if any(arm.is_baseline for arm in group)), [])
    return [_summary(variant, group, baseline, flops_budget) for variant, group in by_variant.items()]


def _summary(variant: str, arms: list[Arm], baseline: list[Arm], flops_budget: float | None) -> SeedSummary:
    accuracies = [arm.accuracy for arm in arms]
    reached, of_baseline = _flops_to_target(arms), _flops_to_target(baseline)
    is_comparable = bool(baseline) and arms[0].shares_problems and arms[0].student == baseline[0].student
    all_reached = len(reached) == len(arms)
    times_less = times_less_interval = None
    if is_comparable and all_reached and len(of_baseline) == len(baseline):
        times_less = _geometric_mean(of_baseline) / _geometric_mean(reached)
        found = ratio_interval(of_baseline, reached)
        times_less_interval = found[1:] if found and arms is not baseline else None
    at_budget = [_best_within(arm, flops_budget) for arm in arms] if flops_budget is not None else []
    known = [value for value in at_budget if value is not None]
    is_known = bool(known) and len(known) == len(arms)
    return SeedSummary(
        variant=variant,
        num_seeds=len(arms),
        is_baseline=arms is baseline,
        accuracy=fmean(accuracies),
        accuracy_interval=_share_interval(accuracies),
        accuracy_range=(min(accuracies), max(accuracies)),
        training_flops=fmean(arm.flops.training for arm in arms),
        num_reached=len(reached),
        flops_to_target=_geometric_mean(reached) if all_reached else None,
        times_less=times_less,
        times_less_interval=times_less_interval,
        accuracy_at_budget=fmean(known) if is_known else None,
        accuracy_at_budget_interval=_share_interval(known) if is_known else None,
    )


def _flops_to_target(arms: list[Arm]) -> list[float]:
    """Of the seeds that reached it. An evaluation before the first step cannot be compared by a ratio."""
    return [arm.flops_to_target for arm in arms if arm.flops_to_target]


def _geometric_mean(values: list[float]) -> float:
    return math.exp(fmean(math.log(value) for value in values))


def _best_within(arm: Arm, flops_budget: float) -> float | None:
    return max((accuracy for flops, accuracy in arm.dev_curve if flops <= flops_budget), default=None)


def _share_interval(values: list[float]) -> tuple[float, float] | None:
    found = mean_interval(values)
    return None if found is None else (max(0.0, found[0]), min(1.0, found[1]))


def seed_sentences(seeds: Sequence[SeedSummary], target: float) -> list[str]:
    """What each variant with several seeds says, and a word of caution for the rest."""
    said = []
    for one in seeds:
        if one.accuracy_interval is None:
            continue
        low, high = one.accuracy_interval
        worst, best = one.accuracy_range
        words = f"{one.variant} over {one.num_seeds} seeds: mean {one.accuracy:.3f} [{low:.3f}, {high:.3f}], "
        words += f"from {worst:.3f} to {best:.3f}"
        if one.times_less is not None and one.times_less_interval is not None:
            least, most = one.times_less_interval
            words += f"; {one.times_less:.1f}x less compute than the baseline to reach {target:.2f} [{least:.1f}, {most:.1f}]"
        elif one.num_reached < one.num_seeds:
            words += f"; {one.num_reached} of {one.num_seeds} reached {target:.2f} on the dev prompts"
        said.append(words + ".")
    if any(one.num_seeds == 1 for one in seeds):
        said.append("One seed for an arm gives no interval over seeds; the brackets are over prompts only.")
    return said
