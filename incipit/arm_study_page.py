"""The page of a study of arms: what was confirmed and what was not, tables, a plot and its data; made from recorded figures alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

from backend.comparison import si
from incipit.arm_study import ArmStudy
from incipit.markdown_table import table
from incipit.study_data import StudyData
from incipit.study_evidence import NOT_EVALUATED, READINGS, claim_lines, interval_text, signed
from incipit.study_plot import draw
from incipit.study_readouts import Paired, Point, curve, curves, got_there, paired
from incipit.study_repair import repair_lines

_SPLITS = {"dev": "dev, last step", "report": "report, best checkpoint"}
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
        *_nothing_gained(study, data),
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
        *repair_lines(study, data),
        f"## Against {study.reference}",
        "",
        *_differences(study, data),
        "",
        *_getting_there(study, data),
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


def _nothing_gained(study: ArmStudy, data: StudyData) -> list[str]:
    """A line where the untrained student did better than every arm: then the arms differ in what they lost. Else none."""
    measure, sign = study.measure, 1 if study.measure.is_better_when == "higher" else -1
    runs = {arm.name: curves(data, arm.name, study.seeds, measure.key) for arm in study.arms}
    ends = [fmean(points[-1].value for points in trained) for trained in runs.values() if trained]
    starts = [points[0].value for trained in runs.values() for points in trained if points[0].step == 0]
    best = max(ends, key=lambda value: sign * value, default=None)
    if not starts or best is None or sign * best >= sign * fmean(starts):
        return []
    return [
        f"* **Nothing was gained:** the untrained student's {measure.name}, {fmean(starts):.3f}, is better than that of every arm "
        f"at its end, {best:.3f} at best. The arms differ in what they lost."
    ]


def _arms(study: ArmStudy, data: StudyData) -> list[str]:
    measure = study.measure
    head = ["arm", "seeds", "steps", "training FLOPs", f"{study.reference} / this", "training s"]
    splits = [split for split in _SPLITS if any(one.split == split for one in data.figures)]
    head += [*(f"{measure.name}, {_SPLITS[split]}" for split in splits), "why"]
    reference = _mean_cost(study, data, study.reference)
    timed_on, *others = data.machines
    rows = []
    for subject, name in _UNTRAINED.items():
        values = [_over_seeds(study, data, None, subject, split, measure.key) for split in splits]
        rows.append([name, "", "", "", "", "", *values, ""])
    for arm in study.arms:
        ends = curves(data, arm.name, study.seeds, measure.key)
        cost = _mean_cost(study, data, arm.name)
        seconds = [points[-1].seconds for points in ends if points[-1].machine == timed_on]
        rows.append(
            [
                arm.name, f"{len(ends)} of {len(study.seeds)}",
                _plain(fmean(points[-1].step for points in ends) if ends else None, 0),
                "–" if cost is None else si(cost) + "FLOP",
                "–" if not cost or reference is None else f"{reference / cost:.1f}",
                _plain(fmean(seconds) if seconds else None, 1),
                *(_over_seeds(study, data, arm.name, "student", split, measure.key) for split in splits), arm.note,
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
        [name, *(_over_seeds(study, data, None, subject, "dev", key) for key in keys)]
        for subject, name in _UNTRAINED.items()
    ]
    rows += [
        [arm.name, *(_over_seeds(study, data, arm.name, "student", "dev", key) for key in keys)] for arm in study.arms
    ]
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
        found = [paired(data, arm.name, study.reference, study.measure.key, at, study.seeds) for at, _ in READINGS]
        rows.append([arm.name, *map(_difference, found)])
    lines = [
        f"{begun(study.measure.name)} of each arm less that of {study.reference} ({better} is better), seed by seed, as far as "
        "the one that got less far went, on the dev prompts; between two evaluations on a line; at equal time only pairs that one "
        "machine trained. The one that went further is read before its end: where the learning rate decays, it has decayed less there. "
        "Brackets are 95 % over seeds (Student's t; those of a share may pass 1), p is exact (sign flips).",
        "",
        *table(["arm", *(words for _, words in READINGS)], rows),
    ]
    if any(NOT_EVALUATED in cell for row in rows for cell in row):
        lines += [
            "",
            f"{NOT_EVALUATED} One of the two was between its start and its first evaluation: the difference lies between these two if "
            "the curve does not turn there.",
        ]
    return lines


def _difference(found: Paired | None) -> str:
    if found is None:
        return "–"
    return f"{signed(found)} {NOT_EVALUATED}" if found.bounds else f"{signed(found)}, p = {found.p_value:.3f}"


def _getting_there(study: ArmStudy, data: StudyData) -> list[str]:
    """What each arm cost until it was as good as the reference in the end; no lines without the reference."""
    measure = study.measure
    ends = [points[-1].value for points in curves(data, study.reference, study.seeds, measure.key)]
    if not ends:
        return []
    is_higher = measure.is_better_when == "higher"
    target = fmean(ends) - measure.margin if is_higher else fmean(ends) + measure.margin
    runs_of = {arm.name: curves(data, arm.name, study.seeds, measure.key) for arm in study.arms}
    there_of = {
        name: [point for points in runs if (point := got_there(points, target, measure.is_better_when))]
        for name, runs in runs_of.items()
    }
    cost_of = {name: median(point.flops for point in there) for name, there in there_of.items() if there}
    own = cost_of.get(study.reference)
    rows = []
    for name, there in there_of.items():
        cost = cost_of.get(name)
        rows.append(
            [
                name, f"{len(there)} of {len(runs_of[name])}", _plain(median(point.step for point in there), 0) if there else "–",
                "–" if cost is None else si(cost) + "FLOP", "–" if not cost or own is None else f"{own / cost:.1f}",
            ]
        )  # fmt: skip
    return [
        f"## Until as good as {study.reference} in the end",
        "",
        f"{begun(measure.name)} of {'at least' if is_higher else 'at most'} {target:.3f}, the mean of {study.reference} at its end "
        f"{'less' if is_higher else 'and'} the margin of {measure.margin:g}: the first evaluation on the dev prompts that was as good. "
        "Medians over the runs that got there; evaluations are as far apart as the plot's points, and later ones may be worse again.",
        "",
        *table(["arm", "runs that got there", "steps", "training FLOPs", f"{study.reference} / this"], rows),
        "",
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
        for points in curves(data, arm.name, study.seeds, study.measure.key):
            for point in points:
                by_step.setdefault(point.step, []).append(point)
        for step, points in sorted(by_step.items()):
            values = [point.value for point in points]
            mean_flops = fmean(point.flops for point in points)
            rows.append([arm.name, str(step), si(mean_flops) + "FLOP", interval_text(values), str(len(values))])
    return table(["arm", "step", "training FLOPs", f"{study.measure.name}, dev", "seeds"], rows)


def _mean_cost(study: ArmStudy, data: StudyData, arm: str) -> float | None:
    costs = [points[-1].flops for points in curves(data, arm, study.seeds, study.measure.key)]
    return fmean(costs) if costs else None


def _over_seeds(study: ArmStudy, data: StudyData, arm: str | None, subject: str, split: str, key: str) -> str:
    """Mean and interval of the last such evaluations; without an arm, of whichever run of each seed was evaluated last."""
    last: dict[int, tuple[int, float]] = {}
    for one in data.figures:
        is_asked = (one.subject, one.split, one.key) == (subject, split, key) and arm in (None, one.arm)
        if is_asked and one.seed in study.seeds and one.step >= last.get(one.seed, (0, 0.0))[0]:
            last[one.seed] = (one.step, one.value)
    return interval_text([value for _, (_, value) in sorted(last.items())]) if last else "–"


def begun(words: str) -> str:
    """As the beginning of a sentence; the rest stays as it is, as KL."""
    return words[:1].upper() + words[1:]


def _plain(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _span(dates: Sequence[str]) -> str:
    return dates[0] if len(dates) == 1 else f"{min(dates)} to {max(dates)}"
