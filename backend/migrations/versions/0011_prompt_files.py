"""Uploaded files of prompts, and the runs that read them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "prompt_files",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("num_rows", sa.Integer(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("map", _JSON, nullable=False),
        sa.Column("system_message", sa.Text(), nullable=True),
        sa.Column("first", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_prompt_files"),
        sa.UniqueConstraint("project_id", "sha256", name="uq_prompt_files_project_id_sha256"),
    )
    op.create_index("ix_prompt_files_sha256", "prompt_files", ["sha256"])
    op.create_table(
        "prompt_file_uses",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("prompt_file_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(["prompt_file_id"], ["prompt_files.id"], name="fk_prompt_file_uses_prompt_file_id"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_prompt_file_uses_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "prompt_file_id", name="pk_prompt_file_uses"),
    )
    op.create_index("ix_prompt_file_uses_prompt_file_id", "prompt_file_uses", ["prompt_file_id"])


def downgrade() -> None:
    op.drop_index("ix_prompt_file_uses_prompt_file_id", "prompt_file_uses")
    op.drop_table("prompt_file_uses")
    op.drop_index("ix_prompt_files_sha256", "prompt_files")
    op.drop_table("prompt_files")
