"""`incipit demo`: the local stack, the built-in comparison, its table, the dashboard."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from engine.locations import incipit_home

_LOG_WIDTH = 160


def demo(
    exit_after: Annotated[
        bool, typer.Option("--exit", help="End after the table instead of leaving the dashboard open.")
    ] = False,
    real: Annotated[
        bool, typer.Option("--real", help="Compare with a real small model (SmolLM2); fetches it first.")
    ] = False,
    home: Annotated[Path | None, typer.Option("--home", help="Where everything is kept; default INCIPIT_HOME.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON instead of a table.")] = False,
) -> None:
    """Run the built-in comparison on this machine and show where a prefix saves compute and where it does not.

    Example: incipit demo --exit

    A second call finds the earlier runs. With the dashboard left open, Ctrl-C ends everything.
    """
    from dashboard.api_errors import ApiError
    from incipit.stack.errors import StackError
    from incipit.stack.interrupts import interrupted_by_signals

    # Without a terminal nothing folds lines, so a log keeps its table whole.
    console = Console(stderr=json, width=None if sys.stdout.isatty() else _LOG_WIDTH)
    began = time.monotonic()
    try:
        with interrupted_by_signals():
            failed = _demo(home or incipit_home(), console, exit_after=exit_after, real=real, json=json, began=began)
    except (StackError, ApiError, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("Stopped; the runs are kept and go on at the next start.")
        raise typer.Exit(130) from None
    raise typer.Exit(1 if failed else 0)


def _demo(home: Path, console: Console, *, exit_after: bool, real: bool, json: bool, began: float) -> bool:
    from incipit.comparison_table import print_comparison
    from incipit.demo_experiment import comparison_of, demo_experiment, find_or_submit, follow
    from incipit.stack.services import services

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    if real:
        from incipit.models import fetch_smollm2

        fetch_smollm2(home, say)
    create = demo_experiment("smollm2-products" if real else "tiny-demo")
    with services(home, say) as (client, dashboard_url, check):
        experiment = find_or_submit(client, create, say)
        if dashboard_url:
            say(f"Watch it at {dashboard_url}/compare?experiment={experiment.id}")
        runs = follow(client, experiment, console, check)
        comparison = comparison_of(client, runs)
        if json:
            typer.echo(comparison.model_dump_json(indent=1))
        else:
            print_comparison(comparison, console)
        failures = [run for run in runs if run.state != "succeeded"]
        for run in failures:
            say(f"{run.name} {run.state}: {run.failure_message or 'stopped'}")
        say(f"{len(runs)} runs, {time.monotonic() - began:.0f} s from start to table.")
        if not exit_after:
            say(f"The dashboard is open at {dashboard_url} (Ctrl-C ends everything).")
            while True:
                check()
                time.sleep(1)
    return bool(failures)
