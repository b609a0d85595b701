"""`incipit checkpoints`: what runs have saved, and how to take it away."""

from __future__ import annotations

import json as jsonlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from backend.schemas import Checkpoint
    from dashboard.api_client import ApiClient
    from incipit.download import Download

app = typer.Typer(no_args_is_help=True, help="List and download checkpoints.")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_MAX_LISTED = 1000
_RUNS_PAGE = 200  # what the API gives at once


@app.command("list")
def list_checkpoints(
    run: Annotated[
        str | None, typer.Argument(help="Only of this run: its id, the end of it, or its name.", show_default=False)
    ] = None,
    json: AsJson = False,
) -> None:
    """Checkpoints, newest first.

    Example: incipit checkpoints list 'prefix 8'
    """
    from dashboard.quantities import accuracy_text, bytes_text
    from incipit.connection import connection

    with connection() as client:
        found = client.checkpoints(limit=_MAX_LISTED) if run is None else _of_runs(client, run)
    if json:
        typer.echo(f"[{', '.join(one.model_dump_json() for one in found)}]")
        return
    table = Table("run", "step", "accuracy", "size", "", box=None)
    table.add_column("id", no_wrap=True, min_width=36)
    for one in found:
        marks = ", ".join(word for word, is_so in (("best", one.is_best), ("pinned", one.pinned)) if is_so)
        table.add_row(
            one.run_name, str(one.step), accuracy_text(one.accuracy), bytes_text(one.num_bytes), marks, one.id
        )
    Console().print(table)


@app.command()
def download(
    checkpoint_id: Annotated[str, typer.Argument(help="Its id, or the end of it.", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to fill; default a new one named after run and step.", show_default=False),
    ] = None,
    json: AsJson = False,
) -> None:
    """Fetch a checkpoint and verify the sha256 of each file; called again, it goes on where it was interrupted.

    Example: incipit checkpoints download 0193f2c1 --out best-model
    """
    from incipit.connection import connection
    from incipit.download import DownloadFailed, checkpoint_download, folder_name

    began = time.monotonic()
    with connection() as client:
        checkpoint = meant(client, checkpoint_id)
        folder = out or Path(folder_name(checkpoint))
        fetching = checkpoint_download(client, checkpoint, folder)
        try:
            fetch(fetching, f"step {checkpoint.step}", checkpoint.num_bytes, shown=not json)
        except DownloadFailed as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from None
        except OSError as error:
            typer.echo(f"{folder} cannot be written ({error.strerror}); free space or choose another --out.", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            typer.echo("Stopped; the same command goes on from here.", err=True)
            raise typer.Exit(130) from None
    result = {
        "checkpoint_id": checkpoint.id,
        "folder": str(folder.absolute()),
        "num_bytes": checkpoint.num_bytes,
        "fetched_bytes": fetching.fetched_bytes,
        "seconds": round(time.monotonic() - began, 3),
        "manifest_sha256": checkpoint.manifest_sha256,
        "files": [file.model_dump() for file in checkpoint.files],
    }
    if json:
        typer.echo(jsonlib.dumps(result))
    else:
        typer.echo(f"{len(checkpoint.files) + 1} files in {folder}, every sha256 verified.")


def fetch(fetching: Download, title: str, num_bytes: int, *, shown: bool) -> None:
    """Run a download beside a bar with rate and remaining time."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not shown) as progress:
        task = progress.add_task(title, total=num_bytes)
        fetching.on_bytes = lambda num_bytes: progress.advance(task, num_bytes)
        fetching.run()


def meant(client: ApiClient, id: str) -> Checkpoint:
    """The checkpoint with an id, or the only one whose id begins or ends like this."""
    from dashboard.api_errors import NotFound

    try:
        return client.checkpoint(id)
    except NotFound:
        found = [one for one in client.checkpoints(limit=_MAX_LISTED) if _is_meant(one.id, id)]
    if len(found) != 1:
        how_many = "No checkpoint has" if not found else f"{len(found)} checkpoints have"
        typer.echo(f"{how_many} an id like {id!r}; see `incipit checkpoints list`.", err=True)
        raise typer.Exit(1)
    return found[0]


def _of_runs(client: ApiClient, given: str) -> list[Checkpoint]:
    """The newest checkpoints of the run with that id, or of all whose id begins or ends like this or whose name it is."""
    ids = _run_ids(client, given)
    found = [one for id in ids for one in client.checkpoints(run_id=id, limit=_MAX_LISTED)]
    return sorted(found, key=lambda one: one.id, reverse=True)[:_MAX_LISTED]


def _run_ids(client: ApiClient, given: str) -> list[str]:
    """All runs are looked through, however old: their checkpoints may be far behind the newest of all."""
    ids: list[str] = []
    page = client.runs(limit=_RUNS_PAGE)
    while True:
        for run in page.items:
            if run.id == given:
                return [run.id]
            if run.name == given or _is_meant(run.id, given):
                ids.append(run.id)
        if page.next_cursor is None:
            return ids
        page = client.runs(cursor=page.next_cursor, limit=_RUNS_PAGE)


def _is_meant(full: str, given: str) -> bool:
    return bool(given) and (full.startswith(given) or full.endswith(given))
