"""Metrics of a run for a chart: few points, among them all that a person looks for in many.

Of each 1,024 steps the first and last point, the least and greatest and a missing value are copied when the last of these
steps is recorded. A chart of a long run reads these, and the points behind them, instead of a million.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from sqlalchemy import delete, func, select, union_all
from sqlalchemy.orm import Session

from backend.records import Metric as MetricRow
from backend.records import MetricHighlight
from backend.schemas import Metric

MAX_POINTS = 2000
STRIDE = 1024
"""Steps whose highlights are copied together."""
_KEPT = 5  # points of a range at most, see highlights()
_EXACT_STRIDES = 4  # so few are read point by point


class Point(NamedTuple):
    """A metric at a step; None is a value that does not exist."""

    step: int
    value: float | None


def metrics(session: Session, run_id: str, keys: Sequence[str], *, after_step: int) -> list[Metric]:
    """Metrics behind a step, each thinned to at most MAX_POINTS; all keys if none is named."""
    known = stored_keys(session, run_id)
    wanted = [key for key in known if key in set(keys)] if keys else known
    if not wanted:
        return []
    begin, end = _highlighted(session, run_id)
    if end - max(begin, after_step) <= _EXACT_STRIDES * STRIDE:
        begin = end = 0
    exact = select(MetricRow.key, MetricRow.step, MetricRow.value).where(
        MetricRow.run_id == run_id, MetricRow.key.in_(wanted)
    )
    # One bound on each side: SQLite walks the index from the first that it finds.
    parts = [exact.where(MetricRow.step > max(after_step, end - 1))]
    if end:
        copied = select(MetricHighlight.key, MetricHighlight.step, MetricHighlight.value).where(
            MetricHighlight.run_id == run_id, MetricHighlight.key.in_(wanted), MetricHighlight.step > after_step
        )
        parts += [exact.where(MetricRow.step > after_step, MetricRow.step < begin), copied]
    rows = session.execute(union_all(*parts)).all()
    found: dict[str, list[Point]] = {}
    for key, step, value in rows:
        found.setdefault(key, []).append(Point(step, value))
    return [_metric(key, thinned(sorted(found[key], key=_step), MAX_POINTS)) for key in sorted(found)]


def stored_keys(session: Session, run_id: str) -> list[str]:
    """Names of a run's metrics, sorted by the database.

    From one to the next by the primary key: a plain DISTINCT would read every point of the run.
    """
    least = select(func.min(MetricRow.key).label("key")).where(MetricRow.run_id == run_id)
    keys = least.cte("keys", recursive=True)
    following = select(func.min(MetricRow.key)).where(MetricRow.run_id == run_id, MetricRow.key > keys.c.key)
    keys = keys.union_all(select(following.scalar_subquery()).where(keys.c.key.is_not(None)))
    return [key for key in session.scalars(select(keys.c.key)) if key is not None]


def add_highlights(session: Session, run_id: str, step: int) -> None:
    """Copy the highlights of the STRIDE steps before a step that is a multiple of it; the caller has recorded all of them."""
    begin = step - STRIDE
    rows = session.execute(
        select(MetricRow.key, MetricRow.step, MetricRow.value)
        .where(
            MetricRow.run_id == run_id,
            MetricRow.key.in_(stored_keys(session, run_id)),
            MetricRow.step >= begin,
            MetricRow.step < step,
        )
        .order_by(MetricRow.key, MetricRow.step)
    )
    session.add_all(
        MetricHighlight(run_id=run_id, key=key, step=point.step, value=point.value)
        for key, of_key in groupby(rows, key=lambda row: row.key)
        for point in highlights([Point(row.step, row.value) for row in of_key])
    )
    session.flush()


def remove_highlights(session: Session, run_id: str, first_gone: int) -> None:
    """Forget the copies of all steps that lie in one STRIDE with, or behind, a step that is gone."""
    begin = first_gone // STRIDE * STRIDE
    session.execute(delete(MetricHighlight).where(MetricHighlight.run_id == run_id, MetricHighlight.step >= begin))


def thinned(points: Sequence[Point], most: int) -> Sequence[Point]:
    """The points (in order of steps), or the highlights of equal ranges of steps when there are more than `most`."""
    if len(points) <= most:
        return points
    first = points[0].step
    width = -(-(points[-1].step - first + 1) // (most // _KEPT))
    ranges = groupby(points, key=lambda point: (point.step - first) // width)
    return [kept for _, in_range in ranges for kept in highlights(list(in_range))]


def highlights(points: Sequence[Point]) -> list[Point]:
    """First and last of some points, the least and greatest value, and the first missing one."""
    known = [point for point in points if point.value is not None]
    kept = {points[0], points[-1]}
    if known:
        kept |= {min(known, key=_value), max(known, key=_value)}
    if len(known) < len(points):
        kept.add(next(point for point in points if point.value is None))
    return sorted(kept, key=_step)


def _highlighted(session: Session, run_id: str) -> tuple[int, int]:
    """First step of the first STRIDE with highlights, and the step behind the last of the last; equal when there are none."""
    span = select(func.min(MetricHighlight.step), func.max(MetricHighlight.step)).where(
        MetricHighlight.run_id == run_id
    )
    first, last = session.execute(span).one()
    return (0, 0) if first is None else (first // STRIDE * STRIDE, (last // STRIDE + 1) * STRIDE)


def _metric(key: str, points: Iterable[Point]) -> Metric:
    kept = list(points)
    return Metric(key=key, steps=[point.step for point in kept], values=[point.value for point in kept])


def _step(point: Point) -> int:
    return point.step


def _value(point: Point) -> float:
    assert point.value is not None
    return point.value
