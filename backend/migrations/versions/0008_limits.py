"""Names of metrics may have 250 characters."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _change(sa.String(128), sa.String(250))


def downgrade() -> None:
    op.execute("DELETE FROM metrics WHERE length(key) > 128")
    _change(sa.String(250), sa.String(128))


def _change(before: sa.String, after: sa.String) -> None:
    with op.batch_alter_table("metrics") as table:
        table.alter_column("key", existing_type=before, type_=after, existing_nullable=False)
