"""Names of metrics may have 250 characters; what a chart shows of a long run is copied beside its points."""

from itertools import groupby
from operator import itemgetter

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


_STRIDE = 1024
_METRICS = sa.table("metrics", *(sa.column(name) for name in ("run_id", "key", "step", "value")))
_HIGHLIGHTS = sa.table("metric_highlights", *(sa.column(name) for name in ("run_id", "key", "step", "value")))


def upgrade() -> None:
    _change(sa.String(128), sa.String(250))
    op.create_table(
        "metric_highlights",
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("key", sa.String(250), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_metric_highlights_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "key", "step", name=op.f("pk_metric_highlights")),
    )
    _copy_highlights()


def downgrade() -> None:
    op.drop_table("metric_highlights")
    op.execute("DELETE FROM metrics WHERE length(key) > 128")
    _change(sa.String(250), sa.String(128))


def _change(before: sa.String, after: sa.String) -> None:
    with op.batch_alter_table("metrics") as table:
        table.alter_column("key", existing_type=before, type_=after, existing_nullable=False)


def _copy_highlights() -> None:
    """Of each metric and each 1,024 steps that are complete: first, last, least, greatest, and a missing value."""
    connection = op.get_bind()
    columns = _METRICS.c
    ends = dict(connection.execute(sa.select(columns.run_id, sa.func.max(columns.step)).group_by(columns.run_id)).all())
    for run_id, key in connection.execute(sa.select(columns.run_id, columns.key).distinct()).all():
        of_key = (columns.run_id == run_id, columns.key == key, columns.step < ends[run_id] // _STRIDE * _STRIDE)
        points = connection.execute(sa.select(columns.step, columns.value).where(*of_key).order_by(columns.step))
        kept = [
            {"run_id": run_id, "key": key, "step": step, "value": value}
            for _, inside in groupby(points.yield_per(10_000), key=lambda point: point.step // _STRIDE)
            for step, value in _highlights([(point.step, point.value) for point in inside])
        ]
        if kept:
            connection.execute(_HIGHLIGHTS.insert(), kept)


def _highlights(points: list[tuple[int, float | None]]) -> set[tuple[int, float | None]]:
    known = [point for point in points if point[1] is not None]
    kept = {points[0], points[-1], *[point for point in points if point[1] is None][:1]}
    return kept | {choose(known, key=itemgetter(1)) for choose in (min, max)} if known else kept
