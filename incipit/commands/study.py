"""`incipit study`: many runs from one file, and a page made from what they recorded."""

from __future__ import annotations

import json as jsonlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from engine.locations import incipit_home

_LOG_WIDTH = 160


def study(
    file: Annotated[Path, typer.Argument(help="The study: a JSON file.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The page to write; default docs/studies/NAME.md, or docs/NAME.md for a list of choices."
        ),
    ] = None,
    report: Annotated[
        bool,
        typer.Option("--report", help="Write the page from what was recorded before; train and ask nothing."),
    ] = False,
    home: Annotated[Path | None, typer.Option("--home", help="Where everything is kept; default INCIPIT_HOME.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print what came out as JSON.")] = False,
) -> None:
    """Train all runs of a study through API and worker, then write its page.

    Examples: incipit study experiments/studies/prefix-vs-full.json; the same with --report, from what was recorded before.

    Uses the running stack, or starts one for as long as the study takes. A second call trains only what is missing.
    """
    from dashboard.api_errors import ApiError
    from incipit.arm_study import is_arm_study
    from incipit.pair_study import is_pair_study
    from incipit.stack.errors import StackError
    from incipit.stack.interrupts import interrupted_by_signals
    from incipit.study import read_document

    console = Console(stderr=json, width=None if sys.stdout.isatty() else _LOG_WIDTH)
    try:
        with interrupted_by_signals():
            document = read_document(file)
            failed = False
            if is_pair_study(document):
                if home is not None:
                    os.environ["INCIPIT_HOME"] = str(home)  # the engine asks in this process
                _pair_study(document, file, out, json=json, report=report)
            elif is_arm_study(document):
                failed = _arm_study(document, file, out, home or incipit_home(), console, json=json, report=report)
            elif report:
                raise ValueError(f"{file} lists choices, of which nothing is recorded for --report; leave that out.")
            else:
                failed = _study(file, out, home or incipit_home(), console, json=json)
    except (StackError, ApiError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("Stopped; the runs are kept and go on at the next start.")
        raise typer.Exit(130) from None
    raise typer.Exit(1 if failed else 0)


def _study(file: Path, out: Path | None, home: Path, console: Console, *, json: bool) -> bool:
    from incipit.demo_experiment import find_or_submit, follow
    from incipit.methods_page import methods_page
    from incipit.stack.services import services
    from incipit.study import read_study

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    wanted = read_study(file)
    page = out or Path("docs") / f"{wanted.file.name}.md"
    if not page.parent.is_dir():
        raise ValueError(f"--out is {page}, but there is no folder {page.parent}; make it or choose another.")
    with services(home, say) as (client, _, check):
        experiment = find_or_submit(client, wanted.experiment, say)
        runs = follow(client, experiment, console, check)
        results = {run.variant: (run, client.evaluations(run.id)) for run in runs}
        page.write_text(methods_page(wanted, results, file=file.as_posix(), commit=_commit(file.parent)))
    if json:
        typer.echo(f"[{', '.join(run.model_dump_json() for run in runs)}]")
    failures = [run for run in runs if run.state != "succeeded"]
    for run in failures:
        say(f"{run.name} {run.state}: {run.failure_message or 'stopped'}")
    say(f"{len(runs)} runs, {len(failures)} of them without success; the page is {page}.")
    return bool(failures)


def _arm_study(
    document: Any, file: Path, out: Path | None, home: Path, console: Console, *, json: bool, report: bool
) -> bool:
    from incipit.arm_study import read_arm_study
    from incipit.arm_study_page import write_page
    from incipit.findings_page import write_findings
    from incipit.stack.services import services
    from incipit.study_sitting import Sitting

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    wanted = read_arm_study(document, str(file))
    page, path = _places(wanted.name, out)
    sitting = Sitting(wanted, path, commit=_commit(file.parent), say=say)
    failures = []
    if not report and sitting.missing:
        with services(home, say) as (client, _, check):
            failures = sitting.train(client, console, check)
    write_page(wanted, sitting.data, page, command=f"incipit study {file.as_posix()} --report", source=path.as_posix())
    if out is None:
        write_findings(file.parent, Path("docs"))
    for run in failures:
        say(f"{run.name} {run.state}: {run.failure_message or 'stopped'}")
    say(f"{sitting.missing} runs are missing; the page is {page}.")
    if json:
        typer.echo(f'{{"missing": {sitting.missing}, "failed": {len(failures)}}}')
    return bool(failures)


def _pair_study(document: Any, file: Path, out: Path | None, *, json: bool, report: bool) -> None:
    from datetime import UTC, datetime
    from functools import partial

    from engine.analyze import analyze
    from incipit.engine_progress import with_progress
    from incipit.pair_study import PairData, read_pair_data, read_pair_study, write_pair_data
    from incipit.pair_study_page import write_pair_page
    from incipit.study_sitting import this_machine

    wanted = read_pair_study(document, str(file))
    page, path = _places(wanted.name, out)
    if not report:
        results = {
            (pair, kind): with_progress(f"{pair}: {kind}", partial(analyze, asked))
            for (pair, kind), asked in wanted.asked().items()
        }
        today = datetime.now(UTC).strftime("%Y-%m-%d")
        source = {"commit": _commit(file.parent), "machine": this_machine(), "date": today}
        write_pair_data(path, PairData(results, source))
    command = f"incipit study {file.as_posix()} --report"
    data = read_pair_data(path)
    write_pair_page(wanted, data, page, command=command, source=path.as_posix())
    typer.echo(f"The page is {page}.", err=True)
    if json:
        found = [
            f'{{"pair": {jsonlib.dumps(pair)}, "result": {one.model_dump_json()}}}'
            for (pair, _), one in data.results.items()
        ]
        typer.echo(f"[{', '.join(found)}]")


def _places(name: str, out: Path | None) -> tuple[Path, Path]:
    """Page and figures of a study that keeps figures."""
    from incipit.arm_study import data_of, page_of

    docs = Path("docs")
    return (page_of(name, docs), data_of(name, docs)) if out is None else (out, out.with_suffix(".parquet"))


def _commit(folder: Path) -> str:
    """The commit of the tree that the study lies in, with a + when the tree has changes."""
    try:
        asked = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
