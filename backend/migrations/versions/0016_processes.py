"""A run says of how many processes it is: on a CPU too, a worker may be too small for them."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("runs") as table:
        table.add_column(sa.Column("num_processes", sa.Integer(), nullable=False, server_default="1"))
    op.execute("UPDATE runs SET num_processes = num_gpus WHERE num_gpus > 1")


def downgrade() -> None:
    with op.batch_alter_table("runs") as table:
        table.drop_column("num_processes")
