"""A study's figures in words: what was found of a claim, a difference, a mean over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from engine.seed_statistics import mean_interval
from incipit.arm_study import ArmStudy, Claim, Reading
from incipit.study_data import StudyData
from incipit.study_readouts import Paired
from incipit.study_verdicts import Decision, decided

READINGS: tuple[tuple[Reading, str], ...] = (
    ("steps", "equal steps"),
    ("flops", "equal training FLOPs"),
    ("time", "equal training time"),
)
NOT_EVALUATED = "‡"


def claim_lines(study: ArmStudy, data: StudyData) -> list[str]:
    """What the figures say of each claim: a list in Markdown."""
    said = []
    for claim in study.claims:
        decision = decided(study, data, claim)
        said.append(f"* **{decision.verdict.capitalize()}:** {claim.statement} {evidence(study, claim, decision)}")
    return said


def evidence(study: ArmStudy, claim: Claim, decision: Decision) -> str:
    """The difference that decides a claim, in brackets."""
    found, measure = decision.found, claim.measure or study.measure
    if found is None:
        return f"(No seed of both {claim.arm} and {claim.against} has been trained yet.)"
    reading = "the best checkpoint, report prompts" if claim.on == "report" else dict(READINGS)[claim.at]
    seeds = f"{len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''}"
    said = f"{measure.name} of {claim.arm} less that of {claim.against} at {reading}: {signed(found)}"
    said += f", {seeds}" if found.bounds else f", {seeds}, p = {found.p_value:.3f}"
    if found.bounds:
        said += "; there one of them was between its start and its first evaluation"
    if decision.is_margin_too_wide:
        said += f"; all values of the study lie within the margin of {measure.margin:g}"
    return f"({said}.)"


def signed(found: Paired) -> str:
    """A difference with its interval; where it was not measured, what it can be."""
    if found.bounds is not None:
        least, most = (fmean(one) for one in found.bounds)
        digits = _digits(least, most)
        return f"between {least:+.{digits}f} and {most:+.{digits}f}"
    if found.interval is None:
        return f"{found.mean:+.{_digits(found.mean)}f}"
    digits = _digits(found.mean, *found.interval)
    return f"{found.mean:+.{digits}f} [{found.interval[0]:+.{digits}f}, {found.interval[1]:+.{digits}f}]"


def interval_text(values: Sequence[float]) -> str:
    """The mean over seeds and its interval."""
    interval = mean_interval(values)
    mean = fmean(values)
    if interval is None:
        return f"{mean:.{_digits(mean)}f}"
    digits = _digits(mean, *interval)
    return f"{mean:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _digits(*values: float) -> int:
    """Behind the point: three, or as many as the largest needs to show two that are not 0."""
    largest = max(map(abs, values))
    return 3 if largest == 0 else max(3, min(6, 1 - math.floor(math.log10(largest))))
