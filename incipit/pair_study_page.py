"""The page of a study of pairs: what each analysis says of each pair, plots and their data; made from recorded results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.analysis_spec import AnalysisResult, AnalysisRow
from incipit.arm_study_page import begun
from incipit.markdown_table import table
from incipit.pair_study import PairData, PairStudy
from incipit.study_plot import COLOURS, DASHES, drawing

_TITLES = {
    "divergence_by_position": "Where the models differ",
    "teacher_prefix": "The student goes on from the teacher's first tokens",
    "teacher_continues": "The teacher goes on from the student's first tokens",
    "gradient_by_position": "Which positions move the weights",
}
_LEADS = {
    "divergence_by_position": slice(0, 1),
    "teacher_prefix": slice(0, 2),
    "teacher_continues": slice(0, 2),
    "gradient_by_position": slice(1, 2),
}
"""Which of its sentences stand in the first lines."""
_SINGLE_ROWS = 24
"""Longer tables are told in groups of rows that double in width."""


def write_pair_page(study: PairStudy, data: PairData, page: Path, *, command: str, source: str) -> None:
    """Write the page and its plots beside it; `source` is the file of the results."""
    page.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"# {study.title}", ""]
    for pair in study.pairs:
        said = [
            sentence
            for (name, kind), result in data.results.items()
            if name == pair.name
            for sentence in result.sentences[_LEADS[kind]]
        ]
        lines.append(f"* **{pair.name}:** {' '.join(said)}")
    lines += ["", study.question, "", study.setting, ""]
    lines += table(["pair", "what is known of it"], [[pair.name, pair.note] for pair in study.pairs])
    for analysis in study.analyses:
        found = {name: result for (name, kind), result in data.results.items() if kind == analysis.kind}
        lines += ["", *_section(study, analysis.kind, found, page)]
    lines += [
        "",
        f"Made by `{command}` from `{source}`; nobody types it. Asked {data.source['date']} at commit {data.source['commit']} on "
        f"{data.source['machine']}.",
        "",
    ]
    page.write_text("\n".join(lines))


def _section(study: PairStudy, kind: str, found: Mapping[str, AnalysisResult], page: Path) -> list[str]:
    any_result = next(iter(found.values()))
    picture = page.with_name(f"{study.name}-{kind.replace('_', '-')}.svg")
    is_by_position = any_result.axis == "completion position"
    with drawing(study.name, picture) as axes:
        for number, (name, result) in enumerate(found.items()):
            at = [row.start + is_by_position for row in result.rows]
            colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
            values = [row.value for row in result.rows]
            axes.plot(at, values, color=colour, linestyle=dashes, marker="" if is_by_position else "o", label=name)
            ends = [row.low for row in result.rows], [row.high for row in result.rows]
            axes.fill_between(at, *ends, color=colour, alpha=0.15, linewidth=0)
        # A logarithm shows the first tokens apart, which wider bins do not tell; there may be a prefix of none.
        has_bins = any(row.end - row.start > 1 for row in any_result.rows)
        axes.set_xscale("linear" if has_bins else "log" if is_by_position else "symlog")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(any_result.axis)
        axes.set_ylabel(any_result.measure)
    lines = [f"## {_TITLES[kind]}", ""]
    lines += [f"![{any_result.measure} by {any_result.axis}, for each pair]({picture.name})", ""]
    lines += [f"{begun(any_result.measure)}; brackets and bands are {any_result.interval}.", ""]
    for name, result in found.items():
        lines += [f"* **{name}** ({result.num_prompts} prompts): {' '.join(result.sentences)}"]
    starts = sorted({(row.start, row.end) for result in found.values() for row in _told(result.rows)})
    head = [any_result.axis, *found]
    rows = [
        [
            str(start + 1) if is_by_position and end == start + 1 else f"{start + 1}–{end}" if is_by_position else str(start),
            *(_cell(_told(result.rows), start, end) for result in found.values()),
        ]
        for start, end in starts
    ]  # fmt: skip
    return [*lines, "", *table(head, rows)]


def _told(rows: Sequence[AnalysisRow]) -> list[AnalysisRow]:
    """The rows, or groups of positions 1, 2, 3–4, 5–8, …, each with the mean over its tokens and without an interval."""
    if len(rows) <= _SINGLE_ROWS:
        return list(rows)
    groups: dict[int, list[AnalysisRow]] = {}
    for row in rows:
        groups.setdefault(row.start.bit_length(), []).append(row)
    return [
        AnalysisRow(
            start=1 << (width - 1) if width else 0, end=1 << width, count=sum(row.count for row in group),
            value=(mean := sum(row.value * row.count for row in group) / sum(row.count for row in group)), low=mean, high=mean,
        )
        for width, group in groups.items()
    ]  # fmt: skip


def _cell(rows: Sequence[AnalysisRow], start: int, end: int) -> str:
    row = next((row for row in rows if (row.start, row.end) == (start, end)), None)
    if row is None:
        return "–"
    return f"{row.value:.3f}" if row.low == row.high else f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
