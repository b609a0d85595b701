"""The tables of alerts and webhooks."""

from datetime import datetime
from typing import get_args

from sqlalchemy import ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from backend.alerts import TEST, AlertRules, DeliveryState, Rule
from backend.columns import CleanText, Id, RecordColumn
from backend.ids import new_id
from backend.tables import Table, one_of


class Alert(Table):
    """Something about a run that a person should know. Each occurrence is told once, however often it is recorded."""

    __tablename__ = "alerts"
    __table_args__ = (
        one_of("rule", (*get_args(Rule), TEST), "rule"),
        UniqueConstraint("run_id", "rule", "occurrence"),
        Index("ix_alerts_project_id", "project_id", "id"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(String(64))
    run_id: Mapped[str | None] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"))
    """None of a test alert."""
    rule: Mapped[str] = mapped_column(String(16))
    occurrence: Mapped[str] = mapped_column(String(80))
    """Tells two alerts of a run and rule apart, such as the step; of a test alert the webhook's id."""
    time: Mapped[datetime]
    step: Mapped[int | None]
    message: Mapped[str] = mapped_column(CleanText)
    dismissed_at: Mapped[datetime | None]
    dismissed_by: Mapped[str | None] = mapped_column(String(128))


class AlertRuleSet(Table):
    """The rules of a project that has changed them."""

    __tablename__ = "alert_rules"

    project_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    rules: Mapped[AlertRules] = mapped_column(RecordColumn(AlertRules))


class Webhook(Table):
    """An address that alerts of a project are sent to."""

    __tablename__ = "webhooks"

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(100))
    url: Mapped[str] = mapped_column(Text)
    may_be_local: Mapped[bool]
    """Whether it was set on a stack of one machine, whose own programs it may then reach."""
    created_by: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime]
    secret_version: Mapped[int] = mapped_column(default=0)
    """How often its secret was changed; the secret itself follows from it and is not kept."""


class WebhookDelivery(Table):
    """An alert on its way to a webhook; made with the alert, in one transaction."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        one_of("state", get_args(DeliveryState), "state"),
        Index("ix_webhook_deliveries_due", "state", "next_at"),
    )

    alert_id: Mapped[str] = mapped_column(Id, ForeignKey("alerts.id", ondelete="CASCADE"), primary_key=True)
    webhook_id: Mapped[str] = mapped_column(
        Id, ForeignKey("webhooks.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    project_id: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), default="pending")
    attempts: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[datetime | None]
    """When it is due; while it is being sent, when another process may try."""
    status: Mapped[int | None]
    error: Mapped[str] = mapped_column(CleanText, default="")
    sent_at: Mapped[datetime | None]
