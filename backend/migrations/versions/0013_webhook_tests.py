"""Test alerts, which are of no run, and secrets of webhooks that can be changed."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_RULES = ("finished", "failed", "health", "divergence", "accuracy", "no_progress")
_TEST = "test"
# The naming convention was applied to a name that followed it already.
_NAME_BEFORE, _NAME = "ck_alerts_ck_alerts_rule", "ck_alerts_rule"


def _one_of(*rules: str) -> str:
    return f"rule IN ({', '.join(repr(rule) for rule in rules)})"


def upgrade() -> None:
    with op.batch_alter_table("alerts") as alerts:
        alerts.drop_constraint(op.f(_NAME_BEFORE), type_="check")
        alerts.alter_column("run_id", existing_type=sa.String(length=36), nullable=True)
        alerts.create_check_constraint(op.f(_NAME), _one_of(*_RULES, _TEST))
    with op.batch_alter_table("webhooks") as webhooks:
        webhooks.add_column(sa.Column("secret_version", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("webhooks") as webhooks:
        webhooks.alter_column("secret_version", server_default=None)


def downgrade() -> None:
    op.execute(f"DELETE FROM webhook_deliveries WHERE alert_id IN (SELECT id FROM alerts WHERE rule = '{_TEST}')")
    op.execute(f"DELETE FROM alerts WHERE rule = '{_TEST}'")
    with op.batch_alter_table("webhooks") as webhooks:
        webhooks.drop_column("secret_version")
    with op.batch_alter_table("alerts") as alerts:
        alerts.drop_constraint(op.f(_NAME), type_="check")
        alerts.alter_column("run_id", existing_type=sa.String(length=36), nullable=False)
        alerts.create_check_constraint(op.f(_NAME_BEFORE), _one_of(*_RULES))
