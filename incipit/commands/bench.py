"""`incipit bench`: how fast this machine trains, and against what."""

from __future__ import annotations

from typing import Annotated

import typer

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def bench(
    context: typer.Context,
    profile: Annotated[
        bool, typer.Option("--profile", help="Split our step by phase, with each phase's share of its roofline.")
    ] = False,
    decode: Annotated[
        bool, typer.Option("--decode", help="Compare our decode loop with transformers' generate.")
    ] = False,
) -> None:
    """Compare whole training steps with TRL's on the same models, prompts, lengths and types; one thread each.

    Example: incipit bench --pairs random --batches 4 --tokens 32 --rounds 1

    Needs a clone of the repository, `pip install -e '.[peer]'` for TRL, and `incipit models fetch smollm2`. All other options
    go to the benchmark: --pairs, --batches, --tokens, --dtypes, --rounds, --json.
    """
    import importlib.util
    import subprocess
    import sys

    if profile and decode:
        typer.echo("--profile and --decode are two benchmarks; name one of them.", err=True)
        raise typer.Exit(2)
    if importlib.util.find_spec("benchmarks") is None:
        typer.echo("The benchmarks are not installed; run `incipit bench` from a clone of the repository.", err=True)
        raise typer.Exit(1)
    module = "benchmarks.step_profile" if profile else "benchmarks.decode_rate" if decode else "benchmarks.peer_step"
    raise typer.Exit(subprocess.run([sys.executable, "-m", module, *context.args], check=False).returncode)
