"""`incipit prompts`: files of prompts that the installation keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from backend.prompt_files import PromptFile
    from dashboard.api_client import ApiClient

app = typer.Typer(no_args_is_help=True, help="Upload, list and delete files of prompts.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def upload(
    path: Annotated[Path, typer.Argument(help="A .jsonl, .csv or .parquet file.", show_default=False)],
    map: Annotated[
        list[str] | None,
        typer.Option(
            "--map", help="What a column is: prompt, messages, answer, completion or id, such as prompt=question."
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Store the prompts of a file; the reference that is printed goes into a spec. Columns are guessed where none is named.

    Example: incipit prompts upload gsm8k.csv --map prompt=question --map answer=answer
    """
    from incipit.connection import connection

    columns = dict(_pair(one) for one in map or ())
    if not path.is_file():
        typer.echo(f"{path} is no file on this machine; correct the path.", err=True)
        raise typer.Exit(1)
    with connection() as client, path.open("rb") as file:
        if not columns:
            columns = client.look_at_prompts(path.name, file).guess
            typer.echo(
                f"Taken: {', '.join(f'{what}={column}' for what, column in columns.items()) or 'no column'}", err=True
            )
        stored = client.upload_prompts(path.name, file, columns)
    if json:
        typer.echo(stored.model_dump_json(indent=1))
        return
    typer.echo(f"{stored.num_rows} prompts of {stored.name}: {stored.reference}")
    if stored.system_message is not None:
        typer.echo(
            f"All begin with the system message {stored.system_message[:200]!r}; set prompts.system_message to it."
        )


@app.command("list")
def list_prompts(json: AsJson = False) -> None:
    """The files of prompts, newest first.

    Example: incipit prompts list
    """
    from dashboard.quantities import bytes_text
    from incipit.connection import connection

    with connection() as client:
        found = client.prompt_files()
    if json:
        typer.echo(f"[{', '.join(one.model_dump_json() for one in found)}]")
        return
    for one in found:
        reads = f", read by {one.num_runs} run{'' if one.num_runs == 1 else 's'}" if one.num_runs else ""
        typer.echo(f"{one.reference}\n  {one.name}: {one.num_rows} prompts, {bytes_text(one.num_bytes)}{reads}")


@app.command()
def delete(
    file: Annotated[str, typer.Argument(help="Its reference, id or name.", show_default=False)],
) -> None:
    """Delete a file that no run reads.

    Example: incipit prompts delete gsm8k.csv
    """
    from incipit.connection import connection

    with connection() as client:
        removed = client.delete_prompt_file(_meant(client, file).id)
    typer.echo(f"{removed.name} is deleted.")


def _meant(client: ApiClient, given: str) -> PromptFile:
    found = [one for one in client.prompt_files() if given in (one.id, one.reference, one.sha256, one.name)]
    if len(found) == 1:
        return found[0]
    said = "no file of prompts is called" if not found else f"{len(found)} files of prompts are called"
    typer.echo(f"{said[:1].upper()}{said[1:]} {given!r}; take a reference from `incipit prompts list`.", err=True)
    raise typer.Exit(1)


def _pair(text: str) -> tuple[str, str]:
    what, sign, column = text.partition("=")
    if not sign or not column or what not in ("prompt", "messages", "answer", "completion", "id"):
        message = "write WHAT=COLUMN with prompt, messages, answer, completion or id, such as prompt=question"
        typer.echo(f"--map is {text!r}; {message}.", err=True)
        raise typer.Exit(2)
    return what, column
