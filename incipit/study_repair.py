"""Where in a text a study's arms repaired their student: the divergence by position, before and behind the training."""

from __future__ import annotations

from statistics import fmean

from incipit.arm_study import ArmStudy
from incipit.markdown_table import table
from incipit.study_data import StudyData
from incipit.study_evidence import interval_text
from incipit.study_readouts import curve

_OWN = {
    "reverse_kl_inside": "own samples, where the loss applies",
    "reverse_kl_beyond": "own samples, behind it",
}
_TEACHERS = {
    f"forward_kl_on_teacher_texts_quarter_{quarter}": f"teacher's texts, quarter {quarter}" for quarter in range(1, 5)
}
_STEADY = ("constant", "full")
"""Schedules whose horizon is the same at the start and at the end, so that inside and behind are the same places."""


def repair_lines(study: ArmStudy, data: StudyData) -> list[str]:
    """A section in Markdown; no lines when no evaluation told where the divergence lay."""
    recorded = {one.key for one in data.figures}
    keys = {key: words for key, words in (_OWN | _TEACHERS).items() if key in recorded}
    if not keys:
        return []
    specs = study.specs(study.seeds[0])
    rows = [
        [arm.name]
        + [
            "–" if key in _OWN and specs[arm.name].prefix.kind not in _STEADY else _repaired(study, data, arm.name, key)
            for key in keys
        ]
        for arm in study.arms
    ]
    by_quarter = (
        " On texts that the teacher wrote: forward KL by quarters of the longest answer."
        if _TEACHERS.keys() & keys
        else ""
    )
    return [
        "## Repair by position",
        "",
        "The divergence of the untrained student → that behind the last step, in nats per token, with 95 % over seeds. On texts that "
        f"each sampled itself: reverse KL; not told where the prefix grew, since inside and behind are other places then.{by_quarter}",
        "",
        *table(["arm", *keys.values()], rows),
        "",
    ]


def _repaired(study: ArmStudy, data: StudyData, arm: str, key: str) -> str:
    runs = [points for seed in study.seeds if len(points := curve(data, arm, seed, key)) > 1 and points[0].step == 0]
    if not runs:
        return "–"
    return f"{fmean(points[0].value for points in runs):.3f} → {interval_text([points[-1].value for points in runs])}"
