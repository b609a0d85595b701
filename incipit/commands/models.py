"""`incipit models`: a real pair that can be had without a hub, and students made of a teacher."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from engine.locations import incipit_home, resolve

app = typer.Typer(no_args_is_help=True, help="Models to work with: fetch a pair, or make a student of a teacher.")


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


@app.command()
def prune(
    source: Annotated[str, typer.Argument(help="Model folder: a path, home:… or builtin:….", show_default=False)],
    target: Annotated[str, typer.Argument(help="New folder: a path or home:….", show_default=False)],
    without_layers: Annotated[
        str, typer.Option("--without-layers", help="Layers to leave out, from 0, such as 5,25.", show_default=False)
    ],
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Copy a model without some of its layers: a student with its teacher's tokenizer. Nothing is trained.

    Example: incipit models prune home:models/smollm2/teacher home:models/smollm2-28 --without-layers 5,25
    """
    import json as jsonlib
    import shutil

    from engine.depth_pruning import prune_layers
    from engine.staging import put_in_place, sealed_files, staging_beside

    try:
        folder = Path(resolve(target)).expanduser()
        if folder.exists():
            raise ValueError(f"{target!r} exists already; name a new folder.")
        staged = staging_beside(folder)
        try:
            pruned = prune_layers(source, staged, _layers(without_layers))
            sealed_files(staged)
            put_in_place(staged, folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except (ValueError, OSError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    said = {"folder": str(folder), "num_layers": pruned.num_layers, "num_weights": pruned.num_weights}
    told = f"{folder}: {pruned.num_layers} layers, {pruned.num_weights / 1e6:.1f} million weights."
    typer.echo(jsonlib.dumps(said, indent=1) if json else told)


def _layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--without-layers is {text!r}; give numbers with commas between them, such as 5,25."
        ) from None
