"""`incipit analyze`: a question about a pair of models, answered on this machine without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import typer
from rich.console import Console
from rich.table import Table

from engine.analysis_spec import AnalysisResult, AnalysisSpec
from incipit.engine_progress import with_progress

Kind = Literal["divergence_by_position", "teacher_prefix", "teacher_continues", "gradient_by_position"]


def analyze(
    kind: Annotated[str, typer.Argument(help=f"What to ask: {', '.join(get_args(Kind))}.", show_default=False)],
    spec: Annotated[Path, typer.Argument(help="The spec of a run: a JSON file.", show_default=False)],
    num_prompts: Annotated[int | None, typer.Option("--num-prompts", help="How many prompts are asked.")] = None,
    prefix_tokens: Annotated[
        str | None,
        typer.Option("--prefix-tokens", help="Prefix lengths, such as 0,8,32 (teacher_prefix, teacher_continues)."),
    ] = None,
    bin_tokens: Annotated[
        int | None, typer.Option("--bin-tokens", help="Positions in a bin (gradient_by_position).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Ask where the signal of a pair lies, before anything is trained.

    Example: incipit analyze divergence_by_position experiments/tiny-prefix-8.json
    """
    from pydantic import ValidationError

    from engine.__main__ import read_spec
    from engine.exit_codes import OF_FAILURE
    from engine.findings import findings_of

    run = read_spec(spec)
    if run is None:
        raise typer.Exit(OF_FAILURE["bad_spec"])
    chosen = {"num_prompts": num_prompts, "bin_tokens": bin_tokens, "prefix_tokens": _numbers(prefix_tokens)}
    document = {
        "run": run.model_dump(mode="json"),
        "analysis": {"kind": kind} | {name: value for name, value in chosen.items() if value is not None},
    }
    try:
        asked = AnalysisSpec.model_validate(document)
    except ValidationError as error:
        for finding in findings_of(error, document):
            typer.echo(finding.message, err=True)
        raise typer.Exit(OF_FAILURE["bad_spec"]) from None
    result = _answer(asked)
    if json:
        typer.echo(result.model_dump_json(indent=1))
    else:
        print_result(result, Console())


def _numbers(text: str | None) -> list[object] | None:
    """The typed numbers; a word that is none stays as it is, and the spec's own rule names it."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",") if word.strip()]
    return [int(word) if word.isdecimal() else word for word in words]


def _answer(asked: AnalysisSpec) -> AnalysisResult:
    from engine.analyze import analyze as run_analysis

    return with_progress(asked.run.name, lambda report: run_analysis(asked, report))


def print_result(result: AnalysisResult, console: Console) -> None:
    """The figures as a table, and what they say."""
    table = Table(title=f"{result.kind.replace('_', ' ')}: {result.measure}, {result.num_prompts} prompts")
    details = list(result.rows[0].details)
    for name in (result.axis, result.measure.partition(",")[0], "interval", "count", *details):
        table.add_column(name.replace("_", " "), justify="right")
    for row in result.rows:
        place = str(row.start) if row.end == row.start + 1 else f"{row.start}–{row.end - 1}"
        figures = ["–" if row.details[name] is None else f"{row.details[name]:.3g}" for name in details]
        table.add_row(place, f"{row.value:.4g}", f"{row.low:.3g} to {row.high:.3g}", str(row.count), *figures)
    console.print(table)
    console.print(f"Interval: {result.interval}.", markup=False, highlight=False)
    for sentence in result.sentences:
        console.print(f"• {sentence}", markup=False, highlight=False)
