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
    vllm_python: Annotated[
        str | None,
        typer.Option("--vllm-python", help="Compare it with a vLLM server that this interpreter starts, on one core."),
    ] = None,
) -> None:
    """Compare whole training steps with TRL's on the same models, prompts, lengths and types; one thread each.

    Example: incipit bench --pairs random --batches 4 --tokens 32 --rounds 1

    Needs a clone of the repository, its extra `peer` for TRL, and `incipit models fetch smollm2`. All other options
    go to the benchmark: --pairs, --batches, --tokens, --dtypes, --rounds, --json.
    """
    import importlib.util
    import subprocess
    import sys

    modules = {
        "--profile": "benchmarks.step_profile" if profile else None,
        "--decode": "benchmarks.decode_rate" if decode else None,
        "--vllm-python": "benchmarks.vllm_rate" if vllm_python is not None else None,
    }
    named = {option: module for option, module in modules.items() if module is not None}
    if len(named) > 1:
        typer.echo(f"{' and '.join(named)} are {len(named)} benchmarks; name one of them.", err=True)
        raise typer.Exit(2)
    if importlib.util.find_spec("benchmarks") is None:
        typer.echo("The benchmarks are not installed; run `incipit bench` from a clone of the repository.", err=True)
        raise typer.Exit(1)
    module = next(iter(named.values()), "benchmarks.peer_step")
    served = [] if vllm_python is None else ["--vllm-python", vllm_python]
    raise typer.Exit(subprocess.run([sys.executable, "-m", module, *served, *context.args], check=False).returncode)
