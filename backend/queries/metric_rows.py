"""Rows that replace those with the same primary key: metrics, of which a run has millions, and whatever else is recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from backend.queries.metrics import STRIDE, add_highlights
from backend.queries.recording_limits import RecordingLimits
from backend.records import Metric, PositionCurve
from backend.tables import Table
from engine.events import StepDone


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


def write_steps(session: Session, run_id: str, fence: int, steps: Sequence[StepDone], watch: RecordingLimits) -> None:
    """Write metrics and curves of steps, each kind in one go."""
    stored = {step.step: watch.metrics(step.step, step.time, _metrics_of(step)) for step in steps}
    write_metrics(session, run_id, fence, stored)
    for step in steps:
        if step.step % STRIDE == 0:
            add_highlights(session, run_id, step.step)
    curves = [
        {"run_id": run_id, "step": step.step, "fence": fence, "source": "training", "split": "train",
         "horizon": step.horizon, "mean": step.position_loss, "p90": [], "teacher_entropy": [],
         "count": step.position_count}
        for step in steps
        if step.position_loss
    ]  # fmt: skip
    if curves:
        upsert(session, PositionCurve, curves)


def _metrics_of(event: StepDone) -> dict[str, float | None]:
    values = event.metrics | {
        "horizon": float(event.horizon),
        "training_flops": event.flops.training,
        "executed_flops": event.executed_flops,
        **{f"seconds.{part}": seconds for part, seconds in event.seconds.items()},
    }
    if event.peak_memory_bytes is not None:
        values["peak_memory_bytes"] = float(event.peak_memory_bytes)
    return values
