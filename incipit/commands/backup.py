"""`incipit backup` and `incipit restore`: an installation in a folder, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from backend.settings import Settings


def backup(
    folder: Annotated[Path, typer.Argument(help="Where to, a folder that does not exist yet.", show_default=False)],
) -> None:
    """Write database, checkpoints, prompts and models into a folder, while everything goes on; every file with its sha256.

    Example: incipit backup /backups/2026-11-26
    """
    from contextlib import closing

    from backend.database import Database
    from backend.migrate import require_head
    from incipit.backup.making import make_backup

    with settings_of() as settings:
        with closing(Database(settings.sql_url)) as database:
            require_head(database)
        made = make_backup(settings.sql_url, settings.home, folder, store_url=settings.store.url)
    for path in made.lost_checkpoints:
        typer.echo(f"left out: checkpoint {path}, which was removed meanwhile or is damaged", err=True)
    typer.echo(
        f"{folder}: {made.num_rows['runs']} runs, {len(made.checkpoints)} checkpoints, {made.num_bytes:,} bytes."
    )
    if made.store_url:
        typer.echo(
            f"Checkpoints and traces are not in it: {made.store_url} has them. Turn on its versioning, or copy it as well."
        )


def restore(
    folder: Annotated[Path, typer.Argument(help="What `incipit backup` has written.", show_default=False)],
    check: Annotated[bool, typer.Option("--check", help="Only read every file and compare its sha256.")] = False,
) -> None:
    """Put a backup into an empty database and an empty home, and verify it there: rows of every table, every checkpoint.

    Stop API and workers first. Example: incipit restore /backups/2026-11-26
    """
    from incipit.backup.restoring import checked_backup, restore_backup

    with settings_of() as settings:
        found = checked_backup(folder) if check else restore_backup(folder, settings.sql_url, settings.home)
    done = "is whole" if check else "is restored and verified"
    made = f"made {found.made_at:%Y-%m-%d %H:%M} UTC by Incipit {found.version}"
    typer.echo(f"{folder} {done}: {found.num_rows['runs']} runs, {len(found.checkpoints)} checkpoints, {made}.")
    if found.store_url:
        typer.echo(
            f"Its checkpoints and traces are in {found.store_url}: start the services with that as INCIPIT_STORE__URL."
        )


@contextmanager
def settings_of() -> Iterator[Settings]:
    """The installation's settings for the block, whose faults are one sentence and status 1."""
    from pydantic import ValidationError
    from sqlalchemy.exc import OperationalError, ProgrammingError

    from backend.migrate import SchemaMismatch
    from backend.settings import Settings
    from incipit.backup.manifest import BackupError

    try:
        yield Settings()
    except ValidationError as error:
        typer.echo("; ".join(str(one["msg"]).removeprefix("Value error, ") for one in error.errors()), err=True)
    except (BackupError, SchemaMismatch, ValueError) as error:
        typer.echo(str(error), err=True)
    except (OperationalError, ProgrammingError):
        typer.echo(
            "The database does not answer, or has no tables; start it, or correct INCIPIT_DATABASE_URL.", err=True
        )
    else:
        return
    raise typer.Exit(1)
