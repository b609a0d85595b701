"""`incipit models`: real models that can be had without a hub."""

from typing import Annotated, Literal

import typer

from engine.locations import incipit_home

app = typer.Typer(no_args_is_help=True, help="Fetch models to work with.")


@app.callback()
def _models() -> None:
    """Fetch models to work with."""


@app.command()
def fetch(
    name: Annotated[Literal["smollm2"], typer.Argument(help="Which pair to fetch.")],
    json: Annotated[bool, typer.Option("--json", help="Print the folders as JSON.")] = False,
) -> None:
    """Build SmolLM2-135M-Instruct (teacher), its 26-layer student and prompts below INCIPIT_HOME; needs a network once.

    Example: incipit models fetch smollm2
    """
    import json as jsonlib

    from incipit.models import fetch_smollm2

    fetchers = {"smollm2": fetch_smollm2}
    try:
        pair = fetchers[name](incipit_home(), lambda text: typer.echo(text, err=True))
    except ValueError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    paths = {"teacher": str(pair.teacher), "student": str(pair.student)}
    paths |= {f"{split} prompts": str(path) for split, path in pair.prompts.items()}
    typer.echo(jsonlib.dumps(paths, indent=1) if json else "\n".join(f"{k}: {v}" for k, v in paths.items()))
