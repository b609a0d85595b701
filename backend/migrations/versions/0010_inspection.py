"""What the traced rollouts of a step say together, in one row a step; samples of what engines use; tokens as a cost; saved views."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_TOKENS = {"sampled_tokens": "rollout_tokens", "trained_tokens": "supervised_tokens"}


def upgrade() -> None:
    op.create_table(
        "step_profiles",
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("subject", sa.String(16), nullable=False),
        sa.Column("horizon", sa.Integer(), nullable=False),
        sa.Column("num_tokens", sa.BigInteger(), nullable=False),
        sa.Column("reverse_kl", sa.Double(), nullable=False),
        sa.Column("grid", _JSON, nullable=False),
        sa.Column("profile", _JSON, nullable=False),
        sa.Column("token_types", _JSON, nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_step_profiles_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "step", name=op.f("pk_step_profiles")),
    )
    op.create_table(
        "resource_samples",
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cpu_percent", sa.Double(), nullable=True),
        sa.Column("rss_bytes", sa.BigInteger(), nullable=True),
        sa.Column("memory_available_bytes", sa.BigInteger(), nullable=True),
        sa.Column("gpu_percent", sa.Double(), nullable=True),
        sa.Column("gpu_memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("gpu_memory_total_bytes", sa.BigInteger(), nullable=True),
        sa.Column("disk_free_bytes", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_resource_samples_run_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "fence", "number", name=op.f("pk_resource_samples")),
    )
    op.create_table(
        "saved_views",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("created_by", sa.String(128), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("query", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_saved_views")),
    )
    op.create_index("ix_saved_views_project_id", "saved_views", ["project_id", "id"])
    for name, key in _TOKENS.items():
        op.add_column("evaluations", sa.Column(name, sa.Double(), nullable=True))
        op.execute(
            f"UPDATE evaluations SET {name} = (SELECT sum(value) FROM metrics WHERE metrics.run_id = evaluations.run_id "
            f"AND metrics.key = '{key}' AND metrics.step <= evaluations.step)"
        )


def downgrade() -> None:
    op.drop_index("ix_saved_views_project_id", "saved_views")
    op.drop_table("saved_views")
    with op.batch_alter_table("evaluations") as table:
        for name in _TOKENS:
            table.drop_column(name)
    op.drop_table("resource_samples")
    op.drop_table("step_profiles")
