"""What the traced rollouts of a step say together, in one row a step; samples of what engines use; tokens as a cost."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0008"
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
    for name, key in _TOKENS.items():
        op.add_column("evaluations", sa.Column(name, sa.Double(), nullable=True))
        op.execute(
            f"UPDATE evaluations SET {name} = (SELECT sum(value) FROM metrics WHERE metrics.run_id = evaluations.run_id "
            f"AND metrics.key = '{key}' AND metrics.step <= evaluations.step)"
        )


def downgrade() -> None:
    with op.batch_alter_table("evaluations") as table:
        for name in _TOKENS:
            table.drop_column(name)
    op.drop_table("resource_samples")
    op.drop_table("step_profiles")
