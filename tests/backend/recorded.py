"""Rows that services write, for tests of what the API reads."""

from datetime import UTC, datetime

from sqlalchemy import delete, func, select, update

from backend.database import Database
from backend.ids import new_id
from backend.records import Metric
from backend.tables import Experiment, Run, Worker


def change_run(database: Database, run_id: str, **values: object) -> None:
    """Set columns of a run."""
    with database.write() as session:
        session.execute(update(Run).where(Run.id == run_id).values(**values))


def set_metric(database: Database, run_id: str, key: str, values: list[float | None]) -> None:
    """Record a metric, from step 1 on, in place of what it was."""
    with database.write() as session:
        session.execute(delete(Metric).where(Metric.run_id == run_id, Metric.key == key))
        session.add_all(
            Metric(run_id=run_id, key=key, step=step, value=value, fence=1) for step, value in enumerate(values, 1)
        )


def add_worker(database: Database, heartbeat_at: datetime) -> str:
    """A worker that was last heard of at a time; its id."""
    id = new_id()
    with database.write() as session:
        session.add(
            Worker(id=id, host="here", pid=1, slot="cpu", started_at=datetime.now(UTC), heartbeat_at=heartbeat_at)
        )
    return id


def stored_counts(database: Database) -> tuple[int, int]:
    """Experiments and runs in the database."""
    with database.read() as session:
        num_experiments = session.scalar(select(func.count()).select_from(Experiment))
        num_runs = session.scalar(select(func.count()).select_from(Run))
    return num_experiments or 0, num_runs or 0
