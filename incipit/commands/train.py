"""`incipit train`: one run on this machine, without services."""

from pathlib import Path
from typing import Annotated

import typer

Spec = Annotated[Path, typer.Argument(help="The spec: a JSON file.", show_default=False)]


def train(
    spec: Spec,
    out: Annotated[
        Path, typer.Option("--out", help="Run folder; it is made when it does not exist.", show_default=False)
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in the run folder.")
    ] = False,
) -> None:
    """Train the student of a spec and show its progress.

    Example: incipit train experiments/tiny-prefix-8.json --out out/prefix-8

    Events, checkpoints and token traces land below OUT/attempts/N. Ctrl-C stops with a checkpoint; --resume goes on.
    """
    from engine.__main__ import read_spec
    from engine.attempt import next_attempt, run_attempt
    from engine.exit_codes import OF_FAILURE

    run_spec = read_spec(spec)
    if run_spec is None:
        raise typer.Exit(OF_FAILURE["bad_spec"])
    attempt = next_attempt(out)
    if attempt > 1 and not resume:
        typer.echo(
            f"{out} already holds {attempt - 1} attempt(s); add --resume to go on or choose another --out.", err=True
        )
        raise typer.Exit(OF_FAILURE["bad_spec"])
    status = run_attempt(run_spec, out, attempt=attempt, resume="newest" if resume else None, supervised=False)
    if status == 0:
        typer.echo(f"Checkpoints are in {out / 'attempts' / str(attempt) / 'checkpoints'}.")
    raise typer.Exit(status)


def check(
    spec: Spec, json: Annotated[bool, typer.Option("--json", help="Print findings and facts as JSON.")] = False
) -> None:
    """Open the models and data of a spec and say what would fail, without training.

    Example: incipit check experiments/tiny-prefix-8.json
    """
    from backend.preflight_facts import estimated_facts
    from engine.__main__ import read_spec
    from engine.check import check as run_check
    from engine.exit_codes import OF_FAILURE

    run_spec = read_spec(spec)
    if run_spec is None:
        raise typer.Exit(OF_FAILURE["bad_spec"])
    result = run_check(run_spec)
    facts, warnings = estimated_facts(run_spec, result.facts)
    result = result.model_copy(update={"facts": facts, "findings": [*result.findings, *warnings]})
    if json:
        typer.echo(result.model_dump_json(indent=1))
    else:
        for finding in result.findings:
            typer.echo(f"{finding.severity}: {finding.message}")
        for name, value in result.facts.items():
            # A chat has lines of its own, and what a terminal would take for commands.
            shown = str(value)
            typer.echo(f"{name}: {shown if shown.isprintable() else ascii(shown)}")
    raise typer.Exit(OF_FAILURE["bad_spec"] if any(f.severity == "error" for f in result.findings) else 0)
