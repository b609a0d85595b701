"""`incipit export`: a checkpoint as a plain folder, a GGUF file or a repository of the hub, made by a worker."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from engine.export_spec import GgufType, SavedAs

if TYPE_CHECKING:
    from backend.exports import Export
    from dashboard.api_client import ApiClient

_POLL_SECONDS = 1.0
_STEPS = 1000  # of the bar


def export(
    checkpoint_id: Annotated[
        str,
        typer.Argument(
            help="Id of the checkpoint, or the end of it; see `incipit checkpoints list`.", show_default=False
        ),
    ],
    kind: Annotated[
        Literal["merged", "gguf", "hub"],
        typer.Option(
            "--kind", help="merged: a plain Hugging Face folder; gguf: a file for llama.cpp; hub: a repository."
        ),
    ],
    file_type: Annotated[
        GgufType | None, typer.Option("--type", help="Of a GGUF file; f16 unless given.", show_default=False)
    ] = None,
    dtype: Annotated[
        SavedAs | None,
        typer.Option("--dtype", help="Of a folder or repository; as saved unless given.", show_default=False),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="OWNER/NAME of a repository.", show_default=False)] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see the new repository.")] = False,
    into_existing: Annotated[
        bool, typer.Option("--into-existing", help="Add a commit to a repository that holds files.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder to fetch the files into; default one named after run and step.", show_default=False
        ),
    ] = None,
    fetch: Annotated[bool, typer.Option(help="Fetch what was made, each sha256 verified.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the export as JSON.")] = False,
) -> None:
    """Have a worker make something of a checkpoint, wait for it, and fetch it.

    Example: incipit export 0193f2c1 --kind gguf --type q8_0 --out my-model
    """
    from incipit.commands.checkpoints import meant
    from incipit.connection import connection

    given = {"file_type": file_type, "dtype": dtype, "repository": to}
    choice: dict[str, Any] = {"kind": kind} | {name: value for name, value in given.items() if value is not None}
    choice |= {"private": False} if public else {}
    choice |= {"into_existing": True} if into_existing else {}
    with connection() as client:
        checkpoint = meant(client, checkpoint_id)
        started = client.start_export(checkpoint.id, choice)
        ended = _awaited(client, started, shown=not json)
        if ended.state == "succeeded" and fetch and ended.result is not None and ended.result.is_kept:
            _fetch(client, ended, out, shown=not json)
    if json:
        typer.echo(ended.model_dump_json())
    elif ended.result is not None:
        for line in (
            *ended.result.notes,
            *([f"{ended.result.url} at commit {ended.result.commit}"] if ended.result.url else []),
        ):
            typer.echo(line)
    if ended.state != "succeeded":
        for finding in ended.findings:
            typer.echo(finding.message, err=True)
        if ended.state == "cancelled":
            typer.echo("It was cancelled; nothing was kept.", err=True)
        raise typer.Exit(1)


def _awaited(client: ApiClient, started: Export, *, shown: bool) -> Export:
    """The export when it has ended, beside a bar; Ctrl-C leaves it to go on."""
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from dashboard.quantities import range_text

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
    try:
        with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
            task = bar.add_task("waiting for a worker", total=_STEPS, left="")
            while True:
                now = client.export(started.id)
                left = f"{range_text((now.eta_seconds, now.eta_seconds))} left" if now.eta_seconds else ""
                words = (
                    now.detail
                    if now.state == "running"
                    else "waiting for a worker"
                    if now.state == "queued"
                    else now.state
                )
                bar.update(task, completed=round(now.done * _STEPS), description=escape(words), left=left)
                if now.state not in ("queued", "running"):
                    return now
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        typer.echo(f"The export {started.id} goes on; the page of its checkpoint shows it and can cancel it.", err=True)
        raise typer.Exit(130) from None


def _fetch(client: ApiClient, ended: Export, out: Path | None, *, shown: bool) -> None:
    from incipit.commands.checkpoints import fetch
    from incipit.download import DownloadFailed, export_download, harmless

    assert ended.result is not None, "the caller looked"
    folder = out or Path(f"{harmless(ended.run_name)}-step-{ended.step}-{ended.result.kind}")
    try:
        fetch(export_download(client, ended, folder), ended.result.kind, ended.result.num_bytes, shown=shown)
    except DownloadFailed as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        typer.echo(f"{folder} cannot be written ({error.strerror}); free space or choose another --out.", err=True)
        raise typer.Exit(1) from None
    if shown:
        typer.echo(f"{len(ended.result.files)} files in {folder}, every sha256 verified.")
