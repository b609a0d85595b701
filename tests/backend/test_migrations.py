"""Migrations run forth and back on both databases and agree with the tables in the code."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

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


def test_runs_of_an_older_schema_keep_their_rows_and_get_the_new_states(empty_url: str) -> None:
    migrate.upgrade(empty_url, "0003")
    database = Database(empty_url)
    with database.write() as session:
        _insert(session, "experiments", _OLD_EXPERIMENT)
        for id, state in (("r1", "stopping"), ("r2", "succeeded")):
            _insert(session, "runs", _OLD_RUN | {"id": id, "state": state})
            _insert(session, "events", _OLD_EVENT | {"run_id": id})
    migrate.upgrade(empty_url)
    assert _states(database) == {"r1": "cancelling", "r2": "succeeded"}
    with database.read() as session:
        assert session.execute(text("SELECT count(*) FROM events")).scalar_one() == 2
    with pytest.raises(IntegrityError), database.write() as session:
        session.execute(text("UPDATE runs SET state = 'stopping'"))
    with database.write() as session:
        session.execute(text("UPDATE runs SET state = 'paused', desired_state = 'pause' WHERE id = 'r2'"))
    migrate.downgrade(empty_url, "0003")
    assert _states(database) == {"r1": "stopping", "r2": "cancelled"}
    with pytest.raises(IntegrityError), database.write() as session:
        session.execute(text("UPDATE runs SET state = 'paused'"))
    database.close()


_DAY = "2026-01-01"
_OLD_EXPERIMENT: dict[str, object] = {
    "id": "e", "project_id": "default", "created_by": "local", "name": "a", "note": "", "created_at": _DAY,
}  # fmt: skip
_OLD_EVENT: dict[str, object] = {"seq": 1, "time": _DAY, "kind": "state", "fence": 1, "payload": "{}"}
_OLD_RUN: dict[str, object] = {
    "experiment_id": "e", "project_id": "default", "created_by": "local", "created_at": _DAY, "spec": "{}",
    "name": "a", "variant": "", "note": "", "seed": 0, "num_steps": 1, "student": "", "teacher": "", "prefix": "",
    "divergence": "", "desired_state": "run", "checkpoint_on_cancel": False, "priority": 0, "fence": 1, "attempt": 1,
    "max_attempts": 3, "phase": "", "last_step": 0,
}  # fmt: skip


def _states(database: Database) -> dict[str, str]:
    with database.read() as session:
        return {row.id: row.state for row in session.execute(text("SELECT id, state FROM runs"))}


def _insert(session: Session, table: str, row: dict[str, object]) -> None:
    names, values = ", ".join(row), ", ".join(f":{name}" for name in row)
    session.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)
