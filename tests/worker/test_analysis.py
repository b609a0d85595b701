"""One analysis and one question with the real engine: answered, refused by name, cancelled, given back at a shutdown."""

import shutil
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import undefer

from backend.access import LOCAL
from backend.analyses import Analysis
from backend.asked import Asked
from backend.database import Database
from backend.playground import QuestionCreate, QueuedQuestion
from backend.queries import analyses as queries
from backend.tables import Analysis as Row
from engine.analysis_spec import AnalysisSpec, DivergenceByPosition, TeacherPrefix
from engine.locations import resolve
from engine.manifest import MANIFEST, Manifest
from engine.playground_spec import (
    BaseSpeaker,
    CheckpointSpeaker,
    PlaygroundResult,
    PlaygroundSpec,
    Speaker,
    TeacherSpeaker,
)
from engine.staging import sealed_files
from engine.token_trace import read_trace
from tests import databases
from tests.worker.runs import OWNER, short_spec
from worker.analysis import work_on_analysis
from worker.engine_server import EngineServer
from worker.settings import WorkerSettings
from worker.slots import Slot
from worker.workplace import Workplace

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
def place(
    home: Path,
    database: Database,
    shutdown: threading.Event,
    engines: EngineServer | None,
) -> Workplace:
    return Workplace(database, home, home / "runs", WorkerSettings(), shutdown.is_set, engine_server=engines)


def claim_of(database: Database, spec: Asked) -> queries.AnalysisClaim:
    with database.write() as session:
        queries.queued(session, spec, "a kind", LOCAL)
        claim = queries.claim_analysis(session, OWNER)
    assert claim is not None
    return claim


def found(database: Database, claim: queries.AnalysisClaim) -> Analysis:
    with database.read() as session:
        analysis = queries.analysis(session, claim.analysis_id)
    assert analysis is not None
    return analysis


@pytest.mark.parametrize("engines", ["forked", "alone"], indirect=True)
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


def test_a_question_is_answered_by_a_checkpoint_the_base_and_the_teacher(place: Workplace, database: Database) -> None:
    folder = place.home / "runs" / "r" / "step-3"
    shutil.copytree(resolve("builtin:tiny/models/student-plan"), folder)
    (folder / MANIFEST).write_text(Manifest(step=3, files=sealed_files(folder)).model_dump_json())
    claim = claim_of(database, question([CheckpointSpeaker(folder="home:runs/r/step-3", run_name="r", step=3)]))
    work_on_analysis(claim, _SLOT, place)
    with database.read() as session:
        row = session.scalars(select(Row).options(undefer(Row.traces))).one()
    assert row.state == "succeeded"
    assert isinstance(row.result, PlaygroundResult)
    checkpoint, base, teacher = row.result.answers
    assert checkpoint.text == base.text, "they have the same weights, and everybody draws with the same numbers"
    assert [one.row for one in row.result.answers] == [0, 1, 2]
    assert row.traces is not None
    traces = [read_trace(BytesIO(row.traces), at) for at in range(3)]
    assert "".join(traces[2].texts) == teacher.text.replace(" ", "")
    assert {len(one.texts) for one in traces} <= set(range(1, 9))


def question(speakers: list[Speaker]) -> QueuedQuestion:
    everybody = [*speakers, BaseSpeaker(), TeacherSpeaker()]
    spec = PlaygroundSpec(run=short_spec(), prompt="k3 k0 c3 |", max_completion_tokens=8, speakers=everybody)
    asked = QuestionCreate(run_id="r", prompt=spec.prompt, speakers=[BaseSpeaker()])
    return QueuedQuestion(asked=asked, spec=spec, run_name="r")


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
