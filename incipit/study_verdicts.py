"""Whether a study's claim holds, by the interval of the difference that it speaks of. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from incipit.arm_study import ArmStudy, Claim, Measure
from incipit.study_data import StudyData
from incipit.study_readouts import Paired, over_seeds, paired, paired_reports

Verdict = Literal["confirmed", "refuted", "undecided"]
# Student's interval of two seeds is 13 standard errors wide, and yet narrow whenever the two happen to agree.
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Decision:
    """What the figures say of a claim."""

    verdict: Verdict
    found: Paired | None
    """The difference of its arms; None without a seed that both have."""
    is_margin_too_wide: bool
    """No two values of its measure in the study lie the margin apart: whatever was found would be within it."""


def decided(study: ArmStudy, data: StudyData, claim: Claim) -> Decision:
    """What the figures say of a claim."""
    measure = claim.measure or study.measure
    if claim.on == "report":
        found = paired_reports(data, claim.arm, claim.against, measure.key, study.seeds)
    else:
        found = paired(data, claim.arm, claim.against, measure.key, claim.at, study.seeds)
    values = [
        one.value
        for one in data.figures
        if (one.key, one.split) == (measure.key, claim.on) and one.subject in ("student", "base")
    ]
    if found is not None and max(values) - min(values) < measure.margin:
        return Decision("undecided", found, is_margin_too_wide=True)
    return Decision(verdict(claim, measure, found), found, is_margin_too_wide=False)


def verdict(claim: Claim, measure: Measure, found: Paired | None) -> Verdict:
    """What the interval of the difference says of the claim; with fewer than three seeds nothing is decided.

    A difference that is refuted may exist: all of its interval is smaller than the margin. Where a run was not evaluated, both
    ends of what it can have been must say the same.
    """
    if found is None or len(found.seeds) < LEAST_SEEDS:
        return "undecided"
    if found.bounds is not None:
        ends = {verdict(claim, measure, over_seeds(found.seeds, differences)) for differences in found.bounds}
        return ends.pop() if len(ends) == 1 else "undecided"
    assert found.interval is not None
    low, high = found.interval
    if measure.is_better_when == "lower":
        low, high = -high, -low
    match claim.says:
        case "as good":
            return "confirmed" if low > -measure.margin else "refuted" if high < -measure.margin else "undecided"
        case "better":
            return "refuted" if high < measure.margin else "confirmed" if low > 0 else "undecided"
        case "worse":
            return "refuted" if low > -measure.margin else "confirmed" if high < 0 else "undecided"
