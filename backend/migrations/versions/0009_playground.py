"""Questions of the playground lie beside analyses and keep the tokens of their answers."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("analyses") as table:
        table.add_column(sa.Column("traces", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    op.execute("DELETE FROM analyses WHERE kind = 'playground'")
    with op.batch_alter_table("analyses") as table:
        table.drop_column("traces")
