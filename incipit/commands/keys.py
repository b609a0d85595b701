"""`incipit keys`: API keys, directly in the database of INCIPIT_HOME or INCIPIT_DATABASE_URL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from backend.access import DEFAULT_PROJECT, ApiKey, Role

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

app = typer.Typer(no_args_is_help=True, help="API keys: who may use the API from another machine, and for what.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for, or whose it is.", show_default=False)],
    role: Annotated[
        Role, typer.Option("--role", help="viewer reads, operator also starts and stops, admin also makes keys.")
    ] = "viewer",
    project: Annotated[
        str, typer.Option("--project", help="The project whose things it sees; '*' is all of them.")
    ] = DEFAULT_PROJECT,
    expires: Annotated[
        str | None, typer.Option("--expires", help="Days until it expires, such as 90d.", show_default="never")
    ] = None,
) -> None:
    """Make a key and print it once; only its hash is stored.

    Example: incipit keys create laptop --role operator --expires 90d
    """
    from pydantic import ValidationError

    from backend.access import KeyCreate
    from backend.queries.api_keys import create_key
    from engine.findings import findings_of

    document = {"name": name, "role": role, "project_id": project, "valid_days": _days(expires)}
    try:
        wanted = KeyCreate.model_validate(document)
    except ValidationError as error:
        for finding in findings_of(error, document):
            typer.echo(finding.message, err=True)
        raise typer.Exit(1) from None
    with _writing() as session:
        created = create_key(session, wanted, created_by="local")
    until = f"until {created.expires_at:%Y-%m-%d}" if created.expires_at else "until it is revoked"
    typer.echo(f"{created.role} of project {created.project_id}, {until}; it is not shown again:", err=True)
    typer.echo(created.key)


@app.command("list")
def list_(json: Annotated[bool, typer.Option("--json", help="Print the keys as JSON.")] = False) -> None:
    """List all keys, without their secrets.

    Example: incipit keys list
    """
    from backend.queries.api_keys import keys

    with _writing() as session:
        found = keys(session)
    if json:
        typer.echo(f"[{', '.join(key.model_dump_json() for key in found)}]")
        return
    for key in found:
        typer.echo(f"{key.id}  {key.role:8}  {key.project_id:12}  {_state(key):30}  {key.name}")
    if not found:
        typer.echo("There is no key; make one with `incipit keys create NAME`.", err=True)


@app.command()
def revoke(id: Annotated[str, typer.Argument(help="As `incipit keys list` gives it.", show_default=False)]) -> None:
    """Make a key invalid for good, at once.

    Example: incipit keys revoke 3f09c2aa41d7be10
    """
    from backend.queries.api_keys import revoke_key

    with _writing() as session:
        revoked = revoke_key(session, id)
    if revoked is None:
        typer.echo(f"There is no key {id[:64]!r}; see `incipit keys list`.", err=True)
        raise typer.Exit(1)
    typer.echo(f"{revoked.name} ({revoked.id}) is revoked.")


def _state(key: ApiKey) -> str:
    from datetime import UTC, datetime

    if key.revoked_at:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if key.expires_at and key.expires_at < datetime.now(UTC):
        return f"expired {key.expires_at:%Y-%m-%d}"
    return f"last used {key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never used"


def _days(expires: str | None) -> int | None:
    if expires is None:
        return None
    match = re.fullmatch(r"(\d{1,4})d", expires)
    if match is None:
        typer.echo(f"--expires is {expires[:40]!r}; give a number of days such as 90d.", err=True)
        raise typer.Exit(1)
    return int(match[1])


@contextmanager
def _writing() -> Iterator[Session]:
    """A session on the installation's database, or one sentence about what is wrong with it."""
    from contextlib import closing

    from pydantic import ValidationError
    from sqlalchemy.exc import OperationalError

    from backend.database import Database
    from backend.migrate import SchemaMismatch, require_head
    from backend.settings import Settings

    try:
        settings = Settings()
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with closing(Database(settings.sql_url)) as database:
            require_head(database)
            with database.write() as session:
                yield session
    except ValidationError as error:
        typer.echo("; ".join(str(one["msg"]).removeprefix("Value error, ") for one in error.errors()), err=True)
        raise typer.Exit(1) from None
    except (SchemaMismatch, ValueError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except OperationalError:
        typer.echo("The database does not answer; start it, or correct INCIPIT_DATABASE_URL.", err=True)
        raise typer.Exit(1) from None
