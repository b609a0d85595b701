"""Memory of the machine and memory of a GPU have names of their own; what was `out_of_memory` is called `oom_host`."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
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
    _rename_failure("out_of_memory", "oom_host")


def downgrade() -> None:
    for kind in ("oom_host", "gpu_error"):
        _rename_failure(kind, "out_of_memory")


def _rename_failure(old: str, new: str) -> None:
    connection = op.get_bind()
    connection.execute(_RUNS.update().where(_RUNS.c.failure_kind == old).values(failure_kind=new))
    failed = sa.select(_EVENTS.c.run_id, _EVENTS.c.seq, _EVENTS.c.payload).where(_EVENTS.c.kind == "failed")
    for run_id, seq, payload in connection.execute(failed).all():
        if payload.get("failure") == old:
            same = (_EVENTS.c.run_id == run_id, _EVENTS.c.seq == seq)
            connection.execute(_EVENTS.update().where(*same).values(payload=payload | {"failure": new}))
