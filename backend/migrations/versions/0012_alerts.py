"""Alerts, their rules, and webhooks that they are sent to."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
_TIME = sa.DateTime(timezone=True)
_RULES = "'finished', 'failed', 'health', 'divergence', 'accuracy', 'no_progress'"


def upgrade() -> None:
    with op.batch_alter_table("runs") as table:
        table.add_column(sa.Column("progressed_at", _TIME, nullable=True))
    op.create_table(
        "alerts",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("rule", sa.String(length=16), nullable=False),
        sa.Column("occurrence", sa.String(length=80), nullable=False),
        sa.Column("time", _TIME, nullable=False),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("dismissed_at", _TIME, nullable=True),
        sa.Column("dismissed_by", sa.String(length=128), nullable=True),
        sa.CheckConstraint(f"rule IN ({_RULES})", name="ck_alerts_rule"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_alerts_run_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_alerts"),
        sa.UniqueConstraint("run_id", "rule", "occurrence", name="uq_alerts_run_id_rule_occurrence"),
    )
    op.create_index("ix_alerts_project_id", "alerts", ["project_id", "id"])
    op.create_table(
        "alert_rules",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("rules", _JSON, nullable=False),
        sa.PrimaryKeyConstraint("project_id", name="pk_alert_rules"),
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("may_be_local", sa.Boolean(), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_webhooks"),
    )
    op.create_index("ix_webhooks_project_id", "webhooks", ["project_id"])
    op.create_table(
        "webhook_deliveries",
        sa.Column("alert_id", sa.String(length=36), nullable=False),
        sa.Column("webhook_id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", _TIME, nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("sent_at", _TIME, nullable=True),
        sa.CheckConstraint("state IN ('pending', 'sent', 'failed')", name="ck_webhook_deliveries_state"),
        sa.ForeignKeyConstraint(["alert_id"], ["alerts.id"], name="fk_webhook_deliveries_alert_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.id"], name="fk_webhook_deliveries_webhook_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("alert_id", "webhook_id", name="pk_webhook_deliveries"),
    )
    op.create_index("ix_webhook_deliveries_due", "webhook_deliveries", ["state", "next_at"])
    op.create_index("ix_webhook_deliveries_webhook_id", "webhook_deliveries", ["webhook_id"])


def downgrade() -> None:
    for name in ("webhook_deliveries", "webhooks", "alert_rules", "alerts"):
        op.drop_table(name)
    with op.batch_alter_table("runs") as table:
        table.drop_column("progressed_at")
