"""Migrations run forth and back on both databases and agree with the tables in the code."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import inspect, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

import backend.access_records
import backend.alert_records
import backend.prompt_file_records
import backend.records  # noqa: F401  # their tables belong to the metadata
from backend import migrate
from backend.database import Database, now_of
from backend.queries.raising import raise_ending
from backend.queries.transitions import add_event
from backend.queries.webhooks import queue_test, rotate_secret
from backend.records import Evaluation, Event, Metric
from backend.tables import Run, RunLabel, Worker
from tests import databases
from tests.worker.runs import queue_runs, short_spec


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


def test_runs_that_failed_for_want_of_space_keep_their_reason_under_its_present_name(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    database = Database(empty_url)
    run_ids = queue_runs(database, short_spec(), short_spec(seed=1))
    with database.write() as session:
        now = now_of(session)
        for run_id, kind in zip(run_ids, ("disk_full", "bad_model"), strict=True):
            session.execute(update(Run).where(Run.id == run_id).values(failure_kind=kind))
            add_event(session, run_id, "failed", {"failure": kind, "message": "words"}, fence=1, time=now)
    database.close()
    names = {"0004": "no_space", "head": "disk_full"}
    for revision, name in names.items():
        move = migrate.downgrade if revision == "0004" else migrate.upgrade
        move(empty_url, revision)
        database = Database(empty_url)
        with database.read() as session:
            kinds = session.execute(text("SELECT failure_kind FROM runs ORDER BY id")).scalars().all()
            payloads = session.scalars(select(Event.payload).where(Event.kind == "failed").order_by(Event.run_id)).all()
        database.close()
        assert kinds == [name, "bad_model"]
        assert payloads == [{"failure": kind, "message": "words"} for kind in kinds]


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


def test_alerts_and_webhooks_stay_when_tests_come_and_go(empty_url: str) -> None:
    migrate.upgrade(empty_url, "0012")
    database = Database(empty_url)
    with database.write() as session:
        _insert(session, "experiments", _OLD_EXPERIMENT)
        _insert(session, "webhooks", {"id": "w", "project_id": "p", "name": "n", "url": "u", "may_be_local": False, "created_by": "l",
                                      "created_at": _DAY})  # fmt: skip
    migrate.upgrade(empty_url)
    (run_id,) = queue_runs(database, short_spec())
    with database.write() as session:
        raise_ending(session, run_id, "failed", "1", "It broke.")
        queue_test(session, "w", "local")
        assert rotate_secret(session, "w") is not None
    with pytest.raises(IntegrityError), database.write() as session:
        session.execute(text("UPDATE alerts SET rule = 'other'"))
    migrate.downgrade(empty_url, "0012")
    with database.read() as session:
        assert session.execute(text("SELECT rule FROM alerts")).scalars().all() == ["failed"]
        assert session.execute(text("SELECT count(*) FROM webhook_deliveries")).scalar_one() == 0
        assert session.execute(text("SELECT id FROM webhooks")).scalars().all() == ["w"]
    migrate.upgrade(empty_url)
    database.close()


def test_runs_of_an_older_schema_keep_their_place_and_say_what_they_need(empty_url: str) -> None:
    migrate.upgrade(empty_url, "0013")
    database = Database(empty_url)
    documents = {"r1": "{}", "r2": '{"device": "cuda"}', "r3": '{"device": "cpu"}'}
    old = _OLD_RUN | {"row_version": 0, "first_fence": 0, "state": "queued"}
    with database.write() as session:
        _insert(session, "experiments", _OLD_EXPERIMENT)
        for id, spec in documents.items():
            _insert(session, "runs", old | {"id": id, "spec": spec})
        for fence, day in ((1, "2026-01-01"), (2, "2026-01-03")):
            _insert(session, "attempts", {"run_id": "r2", "fence": fence, "worker_id": "w", "host": "h", "boot_id": "", "started_at": day,
                                          "resumed_from_step": 0, "event_offset": 0})  # fmt: skip
        worker = {"id": "w", "host": "h", "boot_id": "", "pid": 1, "slot": "cpu0", "capabilities": "{}"}
        _insert(session, "workers", {**worker, "started_at": _DAY, "heartbeat_at": _DAY})
    migrate.upgrade(empty_url)
    columns = (Run.id, Run.device, Run.num_gpus, Run.cpu_memory_bytes, Run.event_version)
    with database.read() as session:
        found = [tuple(row) for row in session.execute(select(*columns).order_by(Run.id))]
        served = session.scalars(select(Run.claimed_at).where(Run.claimed_at.is_not(None))).all()
        assert [moment.day for moment in served if moment] == [3]
        assert session.execute(select(Worker.draining_since, Worker.clock_offset_seconds)).one() == (None, 0.0)
    with database.read() as session:
        assert session.scalars(select(Run.num_processes)).all() == [1, 1, 1]
    assert found == [("r1", "auto", 1, None, 0), ("r2", "cuda", 1, None, 1), ("r3", "cpu", 0, None, 0)]
    with database.write() as session:
        session.add(RunLabel(run_id="r1", label="lab"))
    migrate.downgrade(empty_url, "0013")
    with database.read() as session:
        assert session.execute(text("SELECT count(*) FROM runs")).scalar_one() == 3
        assert session.execute(text("SELECT count(*) FROM attempts")).scalar_one() == 2
    migrate.upgrade(empty_url)
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


def test_evaluations_of_an_older_schema_get_the_tokens_of_the_steps_before_them(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    database = Database(empty_url)
    (run_id,) = queue_runs(database, short_spec())
    with database.write() as session:
        for step in (1, 2, 3):
            session.add(Metric(run_id=run_id, key="supervised_tokens", step=step, value=10.0 * step, fence=1))
        session.add(
            Evaluation(
                run_id=run_id, subject="student", split="dev", step=2, fence=1, num_prompts=1, horizon=4, metrics={},
                training_flops=0.0, training_seconds=0.0, is_best=False,
            )
        )  # fmt: skip
    database.close()
    migrate.downgrade(empty_url, "0008")
    migrate.upgrade(empty_url)
    database = Database(empty_url)
    with database.read() as session:
        found = session.scalars(select(Evaluation)).one()
        assert (found.trained_tokens, found.sampled_tokens) == (30.0, None)
    database.close()
