"""The page of a study of arms: what was confirmed and what was not, tables, a plot and its data; made from recorded figures alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from backend.comparison import si
from engine.seed_statistics import mean_interval
from incipit.arm_study import Arm, ArmStudy, Claim, Reading
from incipit.study_data import Figure, StudyData
from incipit.study_plot import draw
from incipit.study_readouts import Paired, Point, curve, decided, paired

_READINGS: tuple[tuple[Reading, str], ...] = (
    ("steps", "equal steps"),
    ("flops", "equal training FLOPs"),
    ("time", "equal training time"),
)
_UNTRAINED = {"base": "untrained student", "teacher": "teacher"}


def write_page(study: ArmStudy, data: StudyData, page: Path, *, command: str, source: str) -> None:
    """Write the page and its plot beside it; `source` is the file of the figures. ValueError when no run has ended yet."""
    if not data.figures:
        raise ValueError(
            f"There are no figures of {study.name} yet; train it first (`incipit study FILE` without --report)."
        )
    page.parent.mkdir(parents=True, exist_ok=True)
    picture = page.with_suffix(".svg")
    draw(study, data, picture)
    lines = [
        f"# {study.title}",
        "",
        *claim_lines(study, data),
        "",
        study.question,
        "",
        study.setting,
        "",
        f"![{study.measure.name} against training FLOPs, by arm]({picture.name})",
        "",
        "Lines are means over seeds, thin ones single seeds; the figures are in the table at the end.",
        "",
        "## Arms",
        "",
        *_arms(study, data),
        "",
        *_further(study, data),
        f"## Against {study.reference}",
        "",
        *_differences(study, data),
        "",
        *_missing(study, data),
        "## Data of the plot",
        "",
        *_curves(study, data),
        "",
        f"Made by `{command}` from `{source}`; nobody types it. Trained {_span(data.dates)} at commit "
        f"{', '.join(data.commits)} on {'; '.join(data.machines)}.",
        "",
    ]
    page.write_text("\n".join(lines))


def claim_lines(study: ArmStudy, data: StudyData) -> list[str]:
    """What the figures say of each claim: a list in Markdown."""
    said = []
    for claim in study.claims:
        said_of_it, found = decided(study, data, claim)
        said.append(f"* **{said_of_it.capitalize()}:** {claim.statement} {evidence(study, claim, found)}")
    return said


def evidence(study: ArmStudy, claim: Claim, found: Paired | None) -> str:
    """The difference that decides a claim, in brackets."""
    reading = "the best checkpoint, report prompts" if claim.on == "report" else dict(_READINGS)[claim.at]
    if found is None:
        return f"(No seed of both {claim.arm} and {claim.against} has been trained yet.)"
    name = (claim.measure or study.measure).name
    seeds = f"{len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''}"
    return f"({name} of {claim.arm} less that of {claim.against} at {reading}: {_signed(found)}, {seeds}, p = {found.p_value:.3f}.)"


def _arms(study: ArmStudy, data: StudyData) -> list[str]:
    measure = study.measure
    head = ["arm", "seeds", "steps", "training FLOPs", f"{study.reference} / this", "training s"]
    splits = [split for split in ("dev", "report") if any(one.split == split for one in data.figures)]
    head += [*(f"{measure.name}, {split}" for split in splits), "why"]
    reference = _mean_cost(study, data, study.reference)
    timed_on, *others = data.machines
    rows = []
    for subject, name in _UNTRAINED.items():
        values = [_plain(_last(data, None, None, subject, split, measure.key)) for split in splits]
        rows.append([name, "", "", "", "", "", *values, ""])
    for arm in study.arms:
        ends = [curve(data, arm.name, seed, measure.key) for seed in study.seeds]
        ends = [points for points in ends if points]
        cost = _mean_cost(study, data, arm.name)
        seconds = [points[-1].seconds for points in ends if points[-1].machine == timed_on]
        rows.append(
            [
                arm.name, f"{len(ends)} of {len(study.seeds)}",
                _plain(fmean(points[-1].step for points in ends) if ends else None, 0),
                "–" if cost is None else si(cost) + "FLOP",
                "–" if not cost or reference is None else f"{reference / cost:.1f}",
                _plain(fmean(seconds) if seconds else None, 1),
                *(_over_seeds(study, data, arm, split, measure.key) for split in splits), arm.note,
            ]
        )  # fmt: skip
    told = ["", f"Training s is of runs on {timed_on} alone, not of those on {'; '.join(others)}."] if others else []
    return [*table(head, rows), *told]


def _further(study: ArmStudy, data: StudyData) -> list[str]:
    """What else the last evaluations measured; no lines when the study names nothing."""
    keys = study.measure.shown
    if not keys:
        return []
    rows = [
        [name, *(_plain(_last(data, None, None, subject, "dev", key)) for key in keys)]
        for subject, name in _UNTRAINED.items()
    ]
    rows += [[arm.name, *(_over_seeds(study, data, arm, "dev", key) for key in keys)] for arm in study.arms]
    return [
        "## Further figures at the end",
        "",
        "Of the same evaluations, on the dev prompts; [concepts](../concepts.md) says what they are.",
        "",
        *table(["arm", *map(_in_words, keys)], rows),
        "",
    ]


def _in_words(key: str) -> str:
    """A metric's key as a heading."""
    return " ".join({"kl": "KL", "eos": "EOS"}.get(word, word) for word in key.split("_"))


def _differences(study: ArmStudy, data: StudyData) -> list[str]:
    better = "more" if study.measure.is_better_when == "higher" else "less"
    rows = []
    for arm in study.arms:
        if arm.name == study.reference:
            continue
        found = [paired(data, arm.name, study.reference, study.measure.key, at, study.seeds) for at, _ in _READINGS]
        rows.append([arm.name, *("–" if one is None else f"{_signed(one)}, p = {one.p_value:.3f}" for one in found)])
    return [
        f"{begun(study.measure.name)} of each arm less that of {study.reference} ({better} is better), seed by seed, as far as "
        "the one that got less far went, on the dev prompts; between two evaluations on a line; at equal time only pairs that one "
        "machine trained. Brackets are 95 % over seeds (Student's t; those of a share may pass 1), p is exact (sign flips).",
        "",
        *table(["arm", *(words for _, words in _READINGS)], rows),
    ]


def _missing(study: ArmStudy, data: StudyData) -> list[str]:
    lost = {
        arm.name: [seed for seed in study.seeds if not curve(data, arm.name, seed, study.measure.key)]
        for arm in study.arms
    }
    if not any(lost.values()):
        return []
    rows = [f"* {name}: seeds {', '.join(map(str, seeds))}" for name, seeds in lost.items() if seeds]
    return ["## Missing", "", "Not trained yet, and in no figure above:", "", *rows, ""]


def _curves(study: ArmStudy, data: StudyData) -> list[str]:
    rows = []
    for arm in study.arms:
        by_step: dict[int, list[Point]] = {}
        for seed in study.seeds:
            for point in curve(data, arm.name, seed, study.measure.key):
                by_step.setdefault(point.step, []).append(point)
        for step, points in sorted(by_step.items()):
            values = [point.value for point in points]
            mean_flops = fmean(point.flops for point in points)
            rows.append([arm.name, str(step), si(mean_flops) + "FLOP", _interval_text(values), str(len(values))])
    return table(["arm", "step", "training FLOPs", f"{study.measure.name}, dev", "seeds"], rows)


def _mean_cost(study: ArmStudy, data: StudyData, arm: str) -> float | None:
    ends = [curve(data, arm, seed, study.measure.key) for seed in study.seeds]
    costs = [points[-1].flops for points in ends if points]
    return fmean(costs) if costs else None


def _over_seeds(study: ArmStudy, data: StudyData, arm: Arm, split: str, key: str) -> str:
    values = [_last(data, arm.name, seed, "student", split, key) for seed in study.seeds]
    known = [value for value in values if value is not None]
    return _interval_text(known) if known else "–"


def _last(data: StudyData, arm: str | None, seed: int | None, subject: str, split: str, key: str) -> float | None:
    """The value of the last such evaluation, of any run where none is named."""
    found: Figure | None = None
    for one in data.figures:
        is_run = arm is None or (one.arm, one.seed) == (arm, seed)
        is_latest = found is None or one.step >= found.step
        if is_run and (one.subject, one.split, one.key) == (subject, split, key) and is_latest:
            found = one
    return None if found is None else found.value


def _interval_text(values: Sequence[float]) -> str:
    interval = mean_interval(values)
    mean = fmean(values)
    if interval is None:
        return f"{mean:.{_digits(mean)}f}"
    digits = _digits(mean, *interval)
    return f"{mean:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _signed(found: Paired) -> str:
    if found.interval is None:
        return f"{found.mean:+.{_digits(found.mean)}f}"
    digits = _digits(found.mean, *found.interval)
    return f"{found.mean:+.{digits}f} [{found.interval[0]:+.{digits}f}, {found.interval[1]:+.{digits}f}]"


def _digits(*values: float) -> int:
    """Behind the point: three, or as many as the largest needs to show two that are not 0."""
    largest = max(map(abs, values))
    return 3 if largest == 0 else max(3, min(6, 1 - math.floor(math.log10(largest))))


def begun(words: str) -> str:
    """As the beginning of a sentence; the rest stays as it is, as KL."""
    return words[:1].upper() + words[1:]


def _plain(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _span(dates: Sequence[str]) -> str:
    return dates[0] if len(dates) == 1 else f"{min(dates)} to {max(dates)}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines in Markdown."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]
