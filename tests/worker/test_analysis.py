"""One analysis with the real engine: answered, refused by name, cancelled while at work, given back at a shutdown."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.analyses import Analysis
from backend.database import Database
from backend.queries import analyses as queries
from engine.analysis_spec import AnalysisSpec, DivergenceByPosition, TeacherPrefix
from tests import databases
from tests.worker.runs import OWNER, short_spec
from worker.analysis import work_on_analysis
from worker.settings import WorkerSettings
from worker.slots import Slot
from worker.supervisor import Workplace

_SLOT = Slot(0, None)


@pytest.fixture
def database(home: Path) -> Iterator[Database]:
    """SQLite alone: the queries behind it are tested on both."""
    opened = Database(databases.sqlite_copy(home))
    yield opened
    opened.close()


@pytest.fixture
def shutdown() -> threading.Event:
    return threading.Event()


@pytest.fixture
def place(home: Path, database: Database, shutdown: threading.Event) -> Workplace:
    return Workplace(database, home, home / "runs", WorkerSettings(), shutdown.is_set)


def claim_of(database: Database, spec: AnalysisSpec) -> queries.AnalysisClaim:
    with database.write() as session:
        queries.create_analysis(session, spec)
        claim = queries.claim_analysis(session, OWNER)
    assert claim is not None
    return claim


def found(database: Database, claim: queries.AnalysisClaim) -> Analysis:
    with database.read() as session:
        analysis = queries.analysis(session, claim.analysis_id)
    assert analysis is not None
    return analysis


def test_an_answer_is_stored_with_its_rows(place: Workplace, database: Database) -> None:
    claim = claim_of(
        database, AnalysisSpec(run=short_spec(), analysis=TeacherPrefix(num_prompts=2, prefix_tokens=[0, 4]))
    )
    work_on_analysis(claim, _SLOT, place)
    answered = found(database, claim)
    assert answered.state == "succeeded"
    assert answered.result is not None
    assert [row.start for row in answered.result.rows] == [0, 4]


def test_models_that_are_not_there_are_named_at_their_field(place: Workplace, database: Database) -> None:
    claim = claim_of(database, AnalysisSpec(run=short_spec(teacher={"path": "/nowhere/teacher"})))
    work_on_analysis(claim, _SLOT, place)
    failed = found(database, claim)
    assert failed.state == "failed"
    assert failed.findings[0].field == "teacher.path"


def test_a_cancel_ends_the_engine_at_its_next_report(place: Workplace, database: Database) -> None:
    run = short_spec(max_completion_tokens=224, evaluation={"path": "builtin:tiny/data/dev.jsonl", "num_prompts": 1000})
    claim = claim_of(database, AnalysisSpec(run=run, analysis=DivergenceByPosition(num_prompts=1000)))
    work = threading.Thread(target=work_on_analysis, args=(claim, _SLOT, place))
    began = time.monotonic()
    work.start()
    with database.write() as session:
        queries.cancel_analysis(session, claim.analysis_id)
    work.join(30)
    assert not work.is_alive()
    assert time.monotonic() - began < 30
    assert found(database, claim).state == "cancelled"


def test_a_worker_that_shuts_down_gives_it_back(
    place: Workplace, database: Database, shutdown: threading.Event
) -> None:
    shutdown.set()
    claim = claim_of(database, AnalysisSpec(run=short_spec()))
    work_on_analysis(claim, _SLOT, place)
    assert found(database, claim).state == "queued"
