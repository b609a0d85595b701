"""Brings a database to the newest schema, one process at a time; refuses to work on any other schema."""

import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url

from backend.database import Database
from backend.settings import Settings

_SCRIPTS = Path(__file__).with_name("migrations")
_ADVISORY_LOCK = 0x1C1  # any number that no other program on the same PostgreSQL database uses


class SchemaMismatch(RuntimeError):
    """The database's schema is not the one that this version of Incipit works with."""


def upgrade(url: str, revision: str = "head") -> None:
    """Migrate to `revision`, waiting for another process that is migrating; SQLite files are backed up before."""
    with migrating(url) as connection:
        if _current(connection) == head():
            return
        if connection.dialect.name == "sqlite" and _current(connection) is not None:
            _back_up(Path(str(make_url(url).database)), str(_current(connection)))
        command.upgrade(config_for(connection), revision)


def downgrade(url: str, revision: str) -> None:
    """Migrate back to `revision`; `base` drops all tables."""
    with migrating(url) as connection:
        command.downgrade(config_for(connection), revision)


def require_head(database: Database) -> None:
    """Raises SchemaMismatch unless the database has the newest schema."""
    with database.engine.connect() as connection:
        current = _current(connection)
    if current != head():
        raise SchemaMismatch(
            f"The database has schema {current or 'none'} but this version needs {head()}; "
            "run `python -m backend.migrate`, or install the version of Incipit that made it."
        )


def config_for(connection: Connection) -> Config:
    """Alembic's configuration, working on this connection."""
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The newest schema's revision."""
    return str(ScriptDirectory(str(_SCRIPTS)).get_current_head())


def _current(connection: Connection) -> str | None:
    revision = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()
    return revision


@contextmanager
def migrating(url: str) -> Iterator[Connection]:
    """A connection whose holder alone may change the schema; it waits for another one that does."""
    if make_url(url).get_backend_name() == "sqlite":
        path = Path(str(make_url(url).database))
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.with_name(path.name + ".migrating").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            database = Database(url)
            with database.engine.connect() as connection:
                # A table that is rebuilt is dropped and renamed, which must not cascade to the rows that refer to it. By the
                # driver, since SQLAlchemy would begin a transaction first, in which SQLite ignores this setting.
                connection.connection.driver_connection.execute("PRAGMA foreign_keys=OFF")  # type: ignore[union-attr]
                yield connection
                connection.commit()
            database.close()
        return
    db_engine = create_engine(url)  # without the time limits of ordinary sessions: a migration may take long
    with db_engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
        connection.commit()
        try:
            yield connection
            connection.commit()
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _ADVISORY_LOCK})
            connection.commit()
    db_engine.dispose()


def _back_up(path: Path, revision: str) -> None:
    with (
        sqlite3.connect(path) as source,
        sqlite3.connect(path.with_name(f"{path.name}.before-{revision}")) as target,
    ):
        source.backup(target)


if __name__ == "__main__":
    upgrade(Settings().sql_url)
