"""What runs need of a worker and when one last took them; labels; workers that are drained, and what their clocks are off."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_RUNS = sa.table("runs", sa.column("id", sa.String()), sa.column("spec", _JSON), sa.column("device", sa.String()),
                 sa.column("num_gpus", sa.Integer()))  # fmt: skip
# With the value that rows of before get; it is then no default of the column any more.
_NEEDS: dict[str, tuple[Any, Any]] = {
    "device": (sa.String(8), "auto"),
    "num_gpus": (sa.Integer(), "1"),
    "spec_version": (sa.Integer(), "1"),
    "event_version": (sa.Integer(), "0"),
}
_KNOWN_LATER: dict[str, Any] = {
    "claimed_at": _TIME,
    "cpu_memory_bytes": sa.BigInteger(),
    "gpu_memory_bytes": sa.BigInteger(),
    "refusal": sa.Text(),
}
_OF_WORKERS: dict[str, tuple[Any, Any]] = {
    "clock_offset_seconds": (sa.Double(), "0"),
    "drain_requeues": (sa.Boolean(), sa.false()),
}


def upgrade() -> None:
    op.drop_index("ix_runs_queue", "runs")
    with op.batch_alter_table("runs") as runs:
        for name, (kind, value) in _NEEDS.items():
            runs.add_column(sa.Column(name, kind, nullable=False, server_default=value))
        for name, kind in _KNOWN_LATER.items():
            runs.add_column(sa.Column(name, kind, nullable=True))
    with op.batch_alter_table("workers") as workers:
        for name, (kind, value) in _OF_WORKERS.items():
            workers.add_column(sa.Column(name, kind, nullable=False, server_default=value))
        workers.add_column(sa.Column("draining_since", _TIME, nullable=True))
    for table, columns in (("runs", _NEEDS), ("workers", _OF_WORKERS)):
        with op.batch_alter_table(table) as altered:
            for name in columns:
                altered.alter_column(name, server_default=None)
    op.create_table(
        "run_labels",
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("label", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_labels_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "label", name="pk_run_labels"),
    )
    _tell_needs()
    op.create_index("ix_runs_queue", "runs", ["state", "priority", "project_id", "created_by", "id"])
    op.create_index("ix_runs_served_project", "runs", ["project_id", "claimed_at"])
    op.create_index("ix_runs_served_user", "runs", ["project_id", "created_by", "claimed_at"])


def downgrade() -> None:
    for index in ("ix_runs_served_user", "ix_runs_served_project", "ix_runs_queue"):
        op.drop_index(index, "runs")
    op.drop_table("run_labels")
    with op.batch_alter_table("workers") as workers:
        for name in (*_OF_WORKERS, "draining_since"):
            workers.drop_column(name)
    with op.batch_alter_table("runs") as runs:
        for name in (*_NEEDS, *_KNOWN_LATER):
            runs.drop_column(name)
    op.create_index("ix_runs_queue", "runs", ["state", "priority", "id"])


def _tell_needs() -> None:
    """What the rows of before say themselves: their device, their attempts. Nobody has looked at their memory."""
    op.execute(
        "UPDATE runs SET event_version = 1, claimed_at = (SELECT max(started_at) FROM attempts "
        "WHERE attempts.run_id = runs.id) WHERE EXISTS (SELECT 1 FROM attempts WHERE attempts.run_id = runs.id)"
    )
    connection = op.get_bind()
    for id, spec in connection.execute(sa.select(_RUNS.c.id, _RUNS.c.spec)).all():
        device = spec.get("device", "auto")
        if device != "auto":
            values = {"device": device, "num_gpus": 0 if device == "cpu" else 1}
            connection.execute(_RUNS.update().where(_RUNS.c.id == id).values(values))
