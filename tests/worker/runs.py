"""Runs of the tiny pair that end within seconds, put into the queue."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from backend.database import Database
from backend.expansion import PlannedRun
from backend.queries.claims import Claim, claim_run
from backend.queries.experiments import create_experiment
from backend.records import Attempt, Metric
from backend.tables import Run
from engine.events import RunEvent
from engine.spec import RunSpec

OWNER = "another-host:00000000:1:1"
"""A lease owner of another machine, of which nobody here can know whether it lives."""


def short_spec(**changes: object) -> RunSpec:
    """A run of the shipped tiny pair with 10 steps of 4 tokens, evaluated on 2 prompts."""
    document: dict[str, Any] = {
        "name": "short",
        "student": {"path": "builtin:tiny/models/student-plan"},
        "teacher": {"path": "builtin:tiny/models/teacher"},
        "prompts": {"path": "builtin:tiny/data/train.jsonl"},
        "prefix": {"kind": "constant", "tokens": 4},
        "max_completion_tokens": 16,
        "num_steps": 10,
        "prompts_per_step": 2,
        "evaluation": {
            "path": "builtin:tiny/data/dev.jsonl",
            "num_prompts": 2,
            "num_sampled": 1,
            "every_steps": 1000,
            "scorer": {"kind": "after_marker", "marker": "#"},
        },
        "traces": {"num_rollouts": 1},
        "checkpoints": {"every_steps": 5},
    }
    return RunSpec.model_validate(document | changes)


def queue_runs(database: Database, *specs: RunSpec) -> list[str]:
    """Put runs into the queue; their ids, oldest first."""
    with database.write() as session:
        planned = [PlannedRun(variant="", note="", spec=spec) for spec in specs]
        return create_experiment(session, "a question", "", planned)[1]


def claim(database: Database, owner: str = OWNER) -> Claim:
    """The next run, claimed."""
    with database.write() as session:
        claimed = claim_run(session, owner=owner, host="another-host", boot_id="00000000")
    assert claimed is not None
    return claimed


def run_row(database: Database, run_id: str) -> Run:
    """All columns of a run."""
    with database.read() as session:
        return session.execute(select(Run).where(Run.id == run_id)).scalar_one()


def set_columns(database: Database, run_id: str, **columns: object) -> None:
    """Change a run behind the back of everything."""
    with database.write() as session:
        session.execute(update(Run).where(Run.id == run_id).values(**columns))


def recorded_steps(database: Database, run_id: str) -> list[int]:
    """The steps that have a loss, in order; one that was recorded twice would be in it twice."""
    with database.read() as session:
        query = select(Metric.step).where(Metric.run_id == run_id, Metric.key == "loss").order_by(Metric.step)
        return list(session.scalars(query))


@contextmanager
def once(
    database: Database, holds: Callable[[str], bool], act: Callable[[str], None], seconds: float = 150
) -> Iterator[None]:
    """Beside the block: as soon as `holds(run id)` of the first run that is attempted, `act(run id)`; looked for so long."""

    def watch() -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with database.read() as session:
                run_id = session.scalar(select(Attempt.run_id))
            if run_id is not None and holds(run_id):
                act(run_id)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def write_events(run_folder: Path, fence: int, events: Iterable[RunEvent]) -> Path:
    """Append events to an attempt's journal, as the engine does."""
    path = run_folder / "attempts" / str(fence) / "events.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(event.model_dump_json() + "\n" for event in events)
    return path
