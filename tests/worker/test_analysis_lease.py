"""An outage of the database that is shorter than a lease throws no analysis away; a longer one ends the work."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import event, update
from sqlalchemy.exc import OperationalError

from backend.access import LOCAL
from backend.database import Database
from backend.queries import analyses as queries
from backend.settings import Settings
from backend.tables import Analysis
from engine.analysis_spec import AnalysisSpec, TeacherPrefix
from engine.findings import Finding
from tests import databases
from tests.worker.runs import OWNER, short_spec
from worker.analysis import work_on_analysis
from worker.analysis_lease import AnalysisLease
from worker.control import Control
from worker.engine_server import EngineServer
from worker.settings import WorkerSettings
from worker.slots import Slot
from worker.workplace import Workplace


@pytest.fixture
def database(home: Path) -> Iterator[Database]:
    """SQLite, as a lock of it is an outage that a test can make; it is waited for a moment alone."""
    opened = Database(databases.sqlite_copy(home))
    event.listen(opened.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout=50"))
    yield opened
    opened.close()


@pytest.fixture
def claim(database: Database) -> queries.AnalysisClaim:
    with database.write() as session:
        spec = AnalysisSpec(run=short_spec(), analysis=TeacherPrefix(num_prompts=2, prefix_tokens=[0, 4]))
        queries.queued(session, spec, "teacher_prefix", LOCAL)
        claimed = queries.claim_analysis(session, OWNER)
    assert claimed is not None
    return claimed


@contextmanager
def locked(database: Database) -> Iterator[None]:
    """The database, which nobody else can write until the block ends."""
    connection = sqlite3.connect(str(database.engine.url.database), isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def test_the_answer_is_stored_when_the_database_is_back(
    database: Database,
    claim: queries.AnalysisClaim,
    home: Path,
    engines: EngineServer | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = Workplace(database, home, home / "runs", WorkerSettings(), lambda: False, engine_server=engines)
    work = threading.Thread(target=work_on_analysis, args=(claim, Slot(0, None), place))
    with locked(database):
        work.start()
        deadline = time.monotonic() + 45
        while "did not answer" not in caplog.text and work.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "was not stored, it goes on meanwhile" in caplog.text, "its reports met the outage"
        assert work.is_alive(), "the answer is there and cannot be stored"
    work.join(30)
    with database.read() as session:
        answered = queries.analysis(session, claim.analysis_id)
    assert answered is not None
    assert answered.state == "succeeded"


def test_the_work_ends_before_its_lease_when_the_database_stays_away(
    database: Database, claim: queries.AnalysisClaim
) -> None:
    lease = AnalysisLease(database, claim, seconds=3.0)
    began = time.monotonic()
    with locked(database):
        assert lease.keep()
        while lease.keep():
            time.sleep(0.1)
        assert 2.6 <= time.monotonic() - began < 3.0
        with pytest.raises(OperationalError, match="locked"):
            lease.end([Finding(field="", message="late")])
    assert lease.keep(), "nobody has taken it, so that the work could go on"
    with database.write() as session:
        queries.cancel_analysis(session, claim.analysis_id)
    assert not lease.keep()
    assert not lease.end([Finding(field="", message="late")])


def test_a_jump_of_the_clock_takes_nothing_from_its_worker(
    database: Database, claim: queries.AnalysisClaim, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(database.engine.url)
    control = Control(Settings(home=home, database_url=address, broker_url="redis://127.0.0.1:1/0"))
    with database.write() as session:
        session.execute(update(Analysis).values(lease_until=datetime(2020, 1, 1, tzinfo=UTC)))
    jumped = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: jumped)
    assert control.turn()
    control.close()
    assert AnalysisLease(database, claim).keep()
