"""Runs that can be paused, resumed, retried and begun again."""

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_STATES = ("queued", "starting", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled")
_STATES_BEFORE = ("queued", "starting", "running", "stopping", "succeeded", "failed", "cancelled")

_NAMES = ("ck_runs_state", "ck_runs_desired_state")
# The naming convention was applied to names that followed it already.
_NAMES_BEFORE = ("ck_runs_ck_runs_state", "ck_runs_ck_runs_desired_state")


def _one_of(column: str, words: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(word) for word in words)})"


def _drop_checks(runs: BatchOperations, names: tuple[str, str]) -> None:
    for name in names:
        runs.drop_constraint(op.f(name), type_="check")


def upgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        _drop_checks(runs, _NAMES_BEFORE)
        runs.add_column(sa.Column("desired_at", sa.DateTime(timezone=True), nullable=True))
        runs.add_column(sa.Column("first_fence", sa.BigInteger(), nullable=False, server_default="0"))
        runs.add_column(sa.Column("row_version", sa.Integer(), nullable=False, server_default="0"))
    op.execute("UPDATE runs SET state = 'cancelling' WHERE state = 'stopping'")
    with op.batch_alter_table("runs") as runs:
        runs.alter_column("first_fence", server_default=None)
        runs.alter_column("row_version", server_default=None)
        runs.create_check_constraint(op.f(_NAMES[0]), _one_of("state", _STATES))
        runs.create_check_constraint(op.f(_NAMES[1]), _one_of("desired_state", ("run", "pause", "cancel")))


def downgrade() -> None:
    with op.batch_alter_table("runs") as runs:
        _drop_checks(runs, _NAMES)
        runs.drop_column("row_version")
        runs.drop_column("first_fence")
        runs.drop_column("desired_at")
    # What the older schema has no word for is what a person can start again there: nothing runs on unseen.
    op.execute("UPDATE runs SET state = 'cancelled' WHERE state = 'paused'")
    op.execute("UPDATE runs SET state = 'stopping' WHERE state IN ('pausing', 'cancelling')")
    op.execute("UPDATE runs SET desired_state = 'cancel' WHERE desired_state = 'pause'")
    with op.batch_alter_table("runs") as runs:
        runs.create_check_constraint(op.f(_NAMES_BEFORE[0]), _one_of("state", _STATES_BEFORE))
        runs.create_check_constraint(op.f(_NAMES_BEFORE[1]), _one_of("desired_state", ("run", "cancel")))
