"""Migrations run forth and back on both databases and agree with the tables in the code."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import inspect, text

import backend.records  # noqa: F401  # its tables belong to the metadata
from backend import migrate
from backend.database import Database
from tests import databases


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of a database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'home' / 'empty.sqlite3'}"
    else:
        with databases.empty_postgres() as url:
            yield url


def _tables(url: str) -> set[str]:
    database = Database(url)
    names = set(inspect(database.engine).get_table_names())
    database.close()
    return names


def test_migrations_run_up_down_and_up_again(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    first = _tables(empty_url)
    migrate.downgrade(empty_url, "base")
    assert _tables(empty_url) == {"alembic_version"}
    migrate.upgrade(empty_url)
    assert _tables(empty_url) == first >= {"experiments", "runs", "attempts", "events", "metrics", "checkpoints"}


def test_migrated_schema_is_the_one_in_the_code(database: Database) -> None:
    with database.engine.connect() as connection:
        command.check(migrate.config_for(connection))


def test_four_processes_that_start_together_migrate_once(empty_url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate.upgrade, [empty_url] * 4))
    database = Database(empty_url)
    migrate.require_head(database)
    database.close()


def test_any_other_schema_is_refused_with_the_remedy(empty_url: str) -> None:
    if empty_url.startswith("sqlite"):
        Path(empty_url.removeprefix("sqlite:///")).parent.mkdir()
    database = Database(empty_url)
    with pytest.raises(
        migrate.SchemaMismatch, match=r"schema none but this version needs .* `python -m backend\.migrate"
    ):
        migrate.require_head(database)
    database.close()


def test_a_sqlite_file_is_backed_up_before_it_is_migrated(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.sqlite3'}"
    migrate.upgrade(url)
    database = Database(url)
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    database.close()
    with pytest.raises(Exception, match="0000"):  # no such revision: the migration fails after the backup was made
        migrate.upgrade(url)
    assert (tmp_path / "old.sqlite3.before-0000").stat().st_size > 0
