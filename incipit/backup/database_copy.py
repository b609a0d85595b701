"""One moment of a database in a file, and back: SQLite by its online backup, PostgreSQL by pg_dump and pg_restore."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.orm import Session

from backend.queries.inventory import Inventory, inventory, num_rows
from incipit.backup.manifest import BackupError


def kind_of(url: str) -> str:
    """`sqlite` or `postgresql`."""
    return make_url(url).get_backend_name()


def dumped(url: str, target: Path) -> tuple[str, Inventory]:
    """Write the database as it is at one moment to `target`; its schema's revision, and what it holds. Others go on writing."""
    if kind_of(url) == "sqlite":
        with (
            closing(sqlite3.connect(_file_of(url))) as source,
            closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)
            copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        target.chmod(0o600)
        with _reading(f"sqlite:///{target}") as session:
            return _revision(session), inventory(session)
    with _reading(url) as session:
        # The rows that are counted are those that are dumped.
        session.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        snapshot = session.scalar(text("SELECT pg_export_snapshot()"))
        found = _revision(session), inventory(session)
        _run("pg_dump", make_url(url), "--format=custom", f"--snapshot={snapshot}", f"--file={target}")
    target.chmod(0o600)
    return found


def refuse_tables(url: str) -> None:
    """BackupError unless there is nothing in the database that restoring would destroy."""
    if kind_of(url) == "sqlite":
        if _file_of(url).exists():
            raise BackupError(
                f"{_file_of(url)} exists and is not overwritten; move it away, or set another INCIPIT_HOME."
            )
        return
    db_engine = create_engine(url)
    with db_engine.connect() as connection:
        tables = inspect(connection).get_table_names()
    db_engine.dispose()
    if tables:
        raise BackupError(
            f"The database of INCIPIT_DATABASE_URL has {len(tables)} tables and is not overwritten; name an empty database."
        )


def loaded(url: str, source: Path) -> None:
    """Put a dump into an empty database, all of it or nothing."""
    if kind_of(url) == "sqlite":
        path = _file_of(url)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with closing(sqlite3.connect(source)) as dump, closing(sqlite3.connect(path)) as database:
            dump.backup(database)
        path.chmod(0o600)
        return
    _run("pg_restore", make_url(url), "--single-transaction", "--exit-on-error", "--no-owner", "--no-acl", str(source))


def counted(url: str, names: Iterable[str]) -> dict[str, int]:
    """Rows of some tables."""
    with _reading(url) as session:
        return num_rows(session, names)


@contextmanager
def _reading(url: str) -> Iterator[Session]:
    db_engine = create_engine(url)  # without the time limits of ordinary sessions: a dump may take long
    try:
        with Session(db_engine) as session:
            yield session
    finally:
        db_engine.dispose()


def _revision(session: Session) -> str:
    return str(session.scalar(text("SELECT version_num FROM alembic_version")))


def _file_of(url: str) -> Path:
    return Path(str(make_url(url).database))


def _run(program: str, url: URL, *arguments: str) -> None:
    if shutil.which(program) is None:
        raise BackupError(f"{program} is not installed; install PostgreSQL's client programs of the server's version.")
    address = url.set(drivername="postgresql", password=None).render_as_string()
    # Not in an argument, which every user of the machine could read.
    environment = os.environ | ({"PGPASSWORD": url.password} if url.password else {})
    done = subprocess.run(
        [program, f"--dbname={address}", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise BackupError(f"{program} failed: {' '.join(lines[-3:])[:500]}")
