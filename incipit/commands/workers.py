"""`incipit workers`: who is there to take runs, and who is to take no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from backend.schemas import Worker
    from dashboard.api_client import ApiClient

app = typer.Typer(no_args_is_help=True, help="List workers, drain them and let them take runs again.")

WorkerId = Annotated[
    str,
    typer.Argument(
        help="The worker's id or a beginning that no other has; a host is all its slots.", show_default=False
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_(json: AsJson = False) -> None:
    """Workers that were heard of within the last hour, a line for each slot.

    Example: incipit workers list
    """
    from incipit.connection import connection

    with connection() as client:
        _print(client.workers(), json=json)


@app.command()
def drain(
    worker_id: WorkerId,
    requeue: Annotated[
        bool, typer.Option("--requeue", help="Give back the run it works on, with a checkpoint, in place of finishing.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Let a worker take nothing new, until it is resumed or started again.

    Example: incipit workers drain gpu-host-3 --requeue
    """
    from incipit.connection import connection

    with connection() as client:
        _print([client.drain_worker(one.id, requeue=requeue) for one in _meant(client, worker_id)], json=json)


@app.command()
def resume(worker_id: WorkerId, json: AsJson = False) -> None:
    """Let a drained worker take runs again.

    Example: incipit workers resume gpu-host-3
    """
    from incipit.connection import connection

    with connection() as client:
        _print([client.resume_worker(one.id) for one in _meant(client, worker_id)], json=json)


def _meant(client: ApiClient, given: str) -> list[Worker]:
    """The slots of that id or of that host, or the only one whose id begins so: gpu-1 must not mean gpu-10 to gpu-19."""
    known = client.workers()
    for found in ([one for one in known if one.id == given], [one for one in known if one.host == given]):
        if found:
            return found
    begun = [one for one in known if given and one.id.startswith(given)]
    if len(begun) == 1:
        return begun
    if not given:
        told = "The worker is empty, such as from a variable that is not set; name a host or an id."
    elif begun:
        told = (
            f"{len(begun)} workers have ids that begin with {given!r} and none is meant alone; name a whole host or id."
        )
    else:
        told = f"There is no worker {given!r}; `incipit workers list` shows those that are there."
    typer.echo(told, err=True)
    raise typer.Exit(1)


def _print(workers: list[Worker], *, json: bool) -> None:
    if json:
        typer.echo(f"[{', '.join(one.model_dump_json() for one in workers)}]")
        return
    table = Table("host", "slot", "device", "memory", "labels", "state", "works on", box=None)
    table.add_column("id", no_wrap=True)
    for one in workers:
        told = one.capabilities
        size = told.gpu_memory_total_bytes if told.device == "cuda" else told.memory_total_bytes
        memory = "–" if size is None else f"{size / 1e9:.1f} GB"
        state = "not heard of" if not one.is_connected else "ready" if one.drain == "no" else one.drain
        table.add_row(
            one.host, one.slot, told.device or "–", memory, ", ".join(told.labels), state, one.run_id or "", one.id
        )
    Console().print(table)
