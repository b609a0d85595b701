"""`incipit store`: where the files of runs are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from backend.queries.stored import Stored
    from incipit.store_move import Moved, StoreMove

app = typer.Typer(no_args_is_help=True, help="Move checkpoints, token traces and uploaded prompts to another store.")

_PLACE = "A folder of runs, such as /data/runs, or s3://bucket/prefix."


@app.command()
def move(
    source: Annotated[str, typer.Argument(metavar="FROM", help=_PLACE, show_default=False)],
    target: Annotated[str, typer.Argument(metavar="TO", help=_PLACE, show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be copied.")] = False,
) -> None:
    """Copy every checkpoint, trace and uploaded file of prompts that the database speaks of, each verified by its sha256.

    Nothing is removed. Break it off and start it again as you like: what is there is not copied again. Server and keys of a bucket are
    those of INCIPIT_STORE__…. Example: incipit store move /data/runs s3://models/incipit
    """
    from contextlib import closing

    from backend.database import Database
    from backend.migrate import require_head
    from backend.queries.stored import everything_stored, uploads_stored
    from backend.store_problem import StoreProblem
    from incipit.commands.backup import settings_of
    from incipit.store_move import CannotMove, StoreMove

    with settings_of() as settings:
        with closing(Database(settings.sql_url)) as database:
            require_head(database)
            with database.read() as session:
                everything, uploads = everything_stored(session), uploads_stored(session)
        try:
            moved = _shown(StoreMove(source, target, settings.store), everything, uploads, dry=dry_run)
        except (CannotMove, StoreProblem) as error:
            typer.echo(f"{error}", err=True)
            raise typer.Exit(1) from None
        except OSError as error:
            typer.echo(
                f"{error.filename or target} cannot be written ({error.strerror or error}); make room, then start it again.",
                err=True,
            )
            raise typer.Exit(1) from None
    _report(moved, target, dry=dry_run)


def _shown(move: StoreMove, everything: list[Stored], uploads: list[str], *, dry: bool) -> Moved:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(
            f"{len(everything)} checkpoints and traces", total=sum(one.num_bytes for one in everything)
        )
        return move.run(everything, lambda num_bytes: progress.advance(task, num_bytes), uploads=uploads, dry=dry)


def _report(moved: Moved, target: str, *, dry: bool) -> None:
    for one in moved.lost:
        typer.echo(f"not moved: {one}", err=True)
    done = "would be copied" if dry else "copied and verified"
    typer.echo(
        f"{moved.num_copied} {done} ({moved.num_bytes:,} bytes), {moved.num_there} were there already, {len(moved.lost)} are lost."
    )
    if dry:
        return
    change = f"INCIPIT_STORE__URL={target}"
    if not target.startswith("s3://"):
        change = f"no INCIPIT_STORE__… and with INCIPIT_HOME such that its folder `runs` is {target}"
    typer.echo(
        "Now drain the workers, run this command once more for what came meanwhile, and start API, control process and workers with "
        f"{change}. The old store is as it was; remove it when you have seen the new one work."
    )
    if moved.lost:
        raise typer.Exit(1)
