"""What was wrong with a checkpoint that could not be used."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("damage", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("checkpoints", "damage")
