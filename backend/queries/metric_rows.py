"""Rows that replace those with the same primary key: metrics, of which a run has millions, and whatever else is recorded."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from backend.records import Metric
from backend.tables import Table


def write_metrics(session: Session, run_id: str, fence: int, by_step: Mapping[int, Mapping[str, float | None]]) -> None:
    """Write the metrics of some steps of an attempt, in place of those that are there."""
    # In the order of the primary key: two transactions that write the same rows cannot wait for each other.
    points = sorted((key, step) for step, values in by_step.items() for key in values)
    if not points:
        return
    if session.get_bind().dialect.name != "postgresql":
        rows = [
            {"run_id": run_id, "key": key, "step": step, "value": by_step[step][key], "fence": fence}
            for key, step in points
        ]
        upsert(session, Metric, rows)
        return
    keys, steps = zip(*points, strict=True)
    values = [by_step[step][key] for key, step in points]
    fixed = {"run_id": run_id, "fence": fence}
    session.execute(_METRICS_FROM_ARRAYS, {**fixed, "keys": list(keys), "steps": list(steps), "values": values})


# One statement whose text does not depend on the number of points; as rows they cost four times as much.
_METRICS_FROM_ARRAYS = text("""
    INSERT INTO metrics (run_id, key, step, value, fence)
    SELECT CAST(:run_id AS varchar), one.key, one.step, one.value, CAST(:fence AS bigint)
    FROM unnest(CAST(:keys AS varchar[]), CAST(:steps AS integer[]), CAST(:values AS float8[])) AS one(key, step, value)
    ON CONFLICT (run_id, key, step) DO UPDATE SET value = excluded.value, fence = excluded.fence
""")


def upsert(session: Session, table: type[Table], rows: list[dict[str, Any]]) -> None:
    """Insert rows, or replace those with the same primary key."""
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table)
    key = [column.name for column in table.__table__.primary_key.columns]  # type: ignore[attr-defined]
    replaced = {name: statement.excluded[name] for name in rows[0] if name not in key}
    session.execute(statement.on_conflict_do_update(index_elements=key, set_=replaced), rows)
