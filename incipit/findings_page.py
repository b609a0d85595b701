"""The page that gathers what all studies of arms decided; made from their recorded figures alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from incipit.arm_study import ArmStudy, data_of, is_arm_study, page_of, read_arm_study
from incipit.study import read_document
from incipit.study_data import StudyData
from incipit.study_evidence import claim_lines, evidence
from incipit.study_sitting import Sitting
from incipit.study_verdicts import LEAST_SEEDS, decided

_NAME = "findings"


def write_findings(studies: Path, docs: Path) -> Path | None:
    """Gather the studies whose files lie in `studies` and whose figures below `docs`; the page, or None where none has figures."""
    known = [
        (study, data) for study in _arm_studies(studies) if (data := _figures(study, data_of(study.name, docs))).figures
    ]
    if not known:
        return None
    page = page_of(_NAME, docs)
    page.write_text("\n".join(_lines(known)))
    return page


def _arm_studies(folder: Path) -> list[ArmStudy]:
    documents = [(path, read_document(path)) for path in sorted(folder.glob("*.json"))]
    return [read_arm_study(document, str(path)) for path, document in documents if is_arm_study(document)]


def _figures(study: ArmStudy, path: Path) -> StudyData:
    return Sitting(study, path, commit="", say=lambda line: None).data


def _lines(known: Sequence[tuple[ArmStudy, StudyData]]) -> list[str]:
    decisions = [(study, claim, decided(study, data, claim)) for study, data in known for claim in study.claims]
    verdicts = Counter(decision.verdict for _, _, decision in decisions)
    counted = ", ".join(f"{verdicts[one]} {one}" for one in ("confirmed", "refuted", "undecided"))
    too_few = sum(one.found is None or len(one.found.seeds) < LEAST_SEEDS for _, _, one in decisions)
    if too_few:
        counted += f" ({too_few} of them with fewer than three seeds so far)"
    lines = ["# What the studies found", ""]
    lines += [
        f"* **No prefix alone for {claim.warns_of}:** {claim.statement} {evidence(study, claim, decision)}"
        for study, claim, decision in decisions
        if claim.warns_of and decision.verdict == "confirmed"
    ]
    if len(lines) > 2:
        lines.append("")
    lines += [
        f"Claims that were written down before the runs: {counted}. [Studies](index.md) says what decides a claim: the interval does; "
        "p is exact and cannot be below 0.062 with five seeds. Nothing is corrected for their number, and they are not independent: "
        "studies share runs of the same spec and seed. What each was trained on stands under its name; one student is not many.",
        "",
    ]
    for study, data in known:
        setting = f"{study.setting.split('. ')[0].rstrip('.')}."
        lines += [f"## [{study.title}]({study.name}.md)", "", setting, "", *claim_lines(study, data), ""]
    lines += ["Made by `incipit study FILE --report` from the figures of all studies; nobody types it.", ""]
    return lines
