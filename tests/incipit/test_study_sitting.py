"""A sitting against a real API process, in which somebody copies the study's runs while it sits."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console
from sqlalchemy import update

from backend.database import Database
from backend.records import Evaluation
from backend.schemas import RunSummary
from backend.tables import Run
from dashboard.api_client import ApiClient
from incipit.arm_study import ArmStudy, read_arm_study
from incipit.study_sitting import Sitting
from tests import databases
from tests.access import TOKEN
from tests.api_process import served
from tests.backend.recorded import add_worker
from tests.incipit.study_figures import study_document
from tests.worker.runs import set_columns


@pytest.fixture
def study() -> ArmStudy:
    """Two arms with two seeds."""
    return read_arm_study(study_document(seeds=[0, 1], arms=study_document()["arms"][:2], claims=[]), "here")


@pytest.fixture
def address(home: Path) -> str:
    return databases.sqlite_copy(home)


@pytest.fixture
def database(address: str) -> Iterator[Database]:
    opened = Database(address)
    yield opened
    opened.close()


@pytest.fixture
def client(address: str) -> Iterator[ApiClient]:
    with served(address) as api, ApiClient(api.url, token=TOKEN) as opened:
        yield opened


def measured(run: RunSummary) -> Evaluation:
    """The evaluation behind its last step."""
    return Evaluation(
        run_id=run.id, subject="student", split="dev", step=run.num_steps, fence=1, num_prompts=2, horizon=8,
        metrics={"accuracy": 0.5}, training_flops=1.0, training_seconds=1.0, is_best=True,
    )  # fmt: skip


class Colleague:
    """Copies each run as soon as it sees it and then ends all: the study's runs with success, the copies as they ended for it."""

    def __init__(self, client: ApiClient, database: Database) -> None:
        self._client = client
        self._database = database
        self._seen: set[str] = set()

    def __call__(self) -> None:
        """Called as often as the sitting looks at its runs."""
        for run in self._client.runs(limit=200).items:
            if run.id in self._seen:
                continue
            copies = [
                self._client.clone(run.id, {}),
                self._client.clone(run.id, {"num_steps": 7}, name=run.variant),
            ]
            self._end(run, "succeeded")
            self._end(copies[0], "failed")
            self._end(copies[1], "succeeded")
            self._seen |= {run.id, *(copy.id for copy in copies)}

    def _end(self, run: RunSummary, state: str) -> None:
        with self._database.write() as session:
            session.add(measured(run))
        set_columns(self._database, run.id, state=state)


def test_copies_of_a_studys_runs_are_not_its_figures_and_their_failures_not_its_own(
    study: ArmStudy, client: ApiClient, database: Database, tmp_path: Path
) -> None:
    sitting = Sitting(study, tmp_path / "x.parquet", commit="c", say=print)
    failures = sitting.train(client, Console(quiet=True), Colleague(client, database))
    assert (failures, sitting.missing) == ([], 0)
    assert sorted((one.arm, one.seed, one.step) for one in sitting.data.figures) == [
        (arm, seed, study.base.num_steps) for arm in ("full", "prefix 8") for seed in (0, 1)
    ]
    assert len(client.runs(limit=200).items) == 12


def test_a_sitting_that_was_interrupted_goes_on_with_its_runs_though_one_was_copied(
    study: ArmStudy, client: ApiClient, database: Database, tmp_path: Path
) -> None:
    def copy_and_stop() -> None:
        (newest, *_) = client.runs().items
        client.clone(newest.id, {})
        raise KeyboardInterrupt

    first = Sitting(study, tmp_path / "x.parquet", commit="c", say=print)
    with pytest.raises(KeyboardInterrupt):
        first.train(client, Console(quiet=True), copy_and_stop)
    assert [one.num_runs for one in client.experiments()] == [3]

    def stop() -> None:
        raise KeyboardInterrupt

    again = Sitting(study, tmp_path / "x.parquet", commit="c", say=print)
    with pytest.raises(KeyboardInterrupt):
        again.train(client, Console(quiet=True), stop)
    assert [one.num_runs for one in client.experiments()] == [3], "the runs at work are not submitted again"
    with database.write() as session:
        session.execute(update(Run).where(Run.variant == "full").values(state="cancelled"))
    with pytest.raises(KeyboardInterrupt):
        again.train(client, Console(quiet=True), stop)
    assert [one.num_runs for one in client.experiments()] == [2, 3], "a run that was given up is submitted again"


class Slot:
    """Ends one of the study's runs each time the sitting looks, the oldest first, behind so many hours of work."""

    def __init__(self, client: ApiClient, database: Database, hours: float) -> None:
        self._client = client
        self._database = database
        self._hours = hours
        self.asked: list[int] = []
        """How many seeds had been asked for before each end."""

    def __call__(self) -> None:
        """Called as often as the sitting looks at its runs."""
        queued = [run for run in self._client.runs(limit=200).items if run.state == "queued"]
        if queued:
            self.asked.append(len(self._client.experiments()))
            now = datetime.now(UTC)
            began = now - timedelta(hours=self._hours)
            oldest = min(queued, key=lambda run: (run.created_at, run.id))
            set_columns(self._database, oldest.id, state="succeeded", started_at=began, finished_at=now)
            with self._database.write() as session:
                session.add(measured(oldest))


@pytest.mark.parametrize(("num_slots", "asked"), [(1, [1, 1, 2, 2]), (2, [1, 2, 2, 2])])
def test_the_next_seed_is_asked_for_when_a_slot_would_idle(
    study: ArmStudy, client: ApiClient, database: Database, tmp_path: Path, num_slots: int, asked: list[int]
) -> None:
    for _ in range(num_slots):
        add_worker(database, datetime.now(UTC) + timedelta(minutes=5))
    slot = Slot(client, database, hours=0.1)
    sitting = Sitting(study, tmp_path / "x.parquet", commit="c", say=print)
    assert sitting.train(client, Console(quiet=True), slot) == []
    assert (slot.asked, sitting.missing) == (asked, 0)


@pytest.mark.parametrize(("hours", "missing"), [(1.5, 2), (1.6, 0)])
def test_a_seed_that_would_not_fit_into_the_hours_is_left_for_the_next_sitting(
    study: ArmStudy, client: ApiClient, database: Database, tmp_path: Path, hours: float, missing: int
) -> None:
    said: list[str] = []
    slot = Slot(client, database, hours=0.399)
    bounded = study.model_copy(update={"hours": hours})
    sitting = Sitting(bounded, tmp_path / "x.parquet", commit="c", say=said.append)
    sitting.train(client, Console(quiet=True), slot)
    assert sitting.missing == missing
    told = f"0.8 of {hours} CPU-hours are used; the next sitting goes on with seed 1."
    assert (told in said) == bool(missing)


def test_what_ended_before_a_sitting_takes_none_of_its_hours(
    study: ArmStudy, client: ApiClient, database: Database, tmp_path: Path
) -> None:
    client.create_experiment(study.experiment(0).model_dump(mode="json"))
    before = Slot(client, database, hours=3)
    before()
    before()
    said: list[str] = []
    bounded = study.model_copy(update={"hours": 1.0})
    sitting = Sitting(bounded, tmp_path / "x.parquet", commit="c", say=said.append)
    sitting.train(client, Console(quiet=True), Slot(client, database, hours=0.1))
    assert sitting.missing == 0, said
