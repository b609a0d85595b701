"""Pins of checkpoints, what was wrong with one that could not be used; `no_space` is called `disk_full`."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_RUNS = sa.table("runs", sa.column("failure_kind", sa.String()))
_EVENTS = sa.table(
    "events",
    sa.column("run_id", sa.String()),
    sa.column("seq", sa.BigInteger()),
    sa.column("kind", sa.String()),
    sa.column("payload", sa.JSON().with_variant(JSONB(), "postgresql")),
)


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("pinned", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("checkpoints", sa.Column("damage", sa.Text(), nullable=True))
    _rename_failure("no_space", "disk_full")


def downgrade() -> None:
    _rename_failure("disk_full", "no_space")
    op.drop_column("checkpoints", "damage")
    op.drop_column("checkpoints", "pinned")


def _rename_failure(old: str, new: str) -> None:
    connection = op.get_bind()
    connection.execute(_RUNS.update().where(_RUNS.c.failure_kind == old).values(failure_kind=new))
    failed = sa.select(_EVENTS.c.run_id, _EVENTS.c.seq, _EVENTS.c.payload).where(_EVENTS.c.kind == "failed")
    for run_id, seq, payload in connection.execute(failed).all():
        if payload.get("failure") == old:
            same = (_EVENTS.c.run_id == run_id, _EVENTS.c.seq == seq)
            connection.execute(_EVENTS.update().where(*same).values(payload=payload | {"failure": new}))
