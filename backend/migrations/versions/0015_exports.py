"""Exports of checkpoints lie beside analyses and name their checkpoint; their files can be let go."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("analyses") as table:
        table.add_column(sa.Column("checkpoint_id", sa.String(36), nullable=True))
        table.add_column(sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_analyses_checkpoint_id", "analyses", ["checkpoint_id"])


def downgrade() -> None:
    op.execute("DELETE FROM analyses WHERE kind = 'export'")
    op.drop_index("ix_analyses_checkpoint_id", "analyses")
    with op.batch_alter_table("analyses") as table:
        table.drop_column("removed_at")
        table.drop_column("checkpoint_id")
