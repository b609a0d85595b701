"""Alerts, rules and webhooks as people see and change them. The caller commits."""

from urllib.parse import urlsplit

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from backend.access import Principal
from backend.alert_records import Alert as Row
from backend.alert_records import AlertRuleSet, Webhook, WebhookDelivery
from backend.alerts import SEVERITY, Alert, AlertRules, Delivery, WebhookCreate
from backend.alerts import Webhook as ToldWebhook
from backend.database import now_of
from backend.ids import new_id
from backend.limits import Limits
from backend.problems import Refusal
from backend.tables import Run

_NUM_DELIVERIES = 50
_ALERTS = select(Row, Run.name).join(Run, Run.id == Row.run_id)


def alerts(session: Session, *, is_open: bool, before: str | None, limit: int) -> list[Alert]:
    """Alerts, newest first, those behind id `before`; only those that nobody has dismissed if `is_open`."""
    query = _ALERTS.order_by(Row.id.desc()).limit(limit)
    if is_open:
        query = query.where(Row.dismissed_at.is_(None))
    if before is not None:
        query = query.where(Row.id < before)
    return [_told(row, name) for row, name in session.execute(query).all()]


def num_open(session: Session) -> int:
    """Alerts that nobody has dismissed."""
    return session.scalar(select(func.count(Row.id)).where(Row.dismissed_at.is_(None))) or 0


def dismiss(session: Session, id: str, by: str) -> Alert | None:
    """Take an alert out of the open ones, for everybody; whoever did so first is named."""
    session.execute(
        update(Row)
        .where(Row.id == id, Row.dismissed_at.is_(None))
        .values(dismissed_at=now_of(session), dismissed_by=by)
    )
    found = session.execute(_ALERTS.where(Row.id == id)).one_or_none()
    return None if found is None else _told(*found)


def set_rules(session: Session, project_id: str, rules: AlertRules) -> None:
    """Replace the rules of a project."""
    session.merge(AlertRuleSet(project_id=project_id, rules=rules))


def add_webhook(
    session: Session, wanted: WebhookCreate, *, owner: Principal, may_be_local: bool, limits: Limits
) -> ToldWebhook:
    """Store an address; Refusal (409) when the project has as many as it may."""
    project_id = owner.home_project
    count = session.scalar(select(func.count(Webhook.id)).where(Webhook.project_id == project_id)) or 0
    if count >= limits.webhooks:
        raise Refusal(409, f"The project has {count} webhooks, as many as it may; delete one first.")
    row = Webhook(
        id=new_id(), project_id=project_id, name=wanted.name, url=wanted.url, may_be_local=may_be_local, created_by=owner.id,
        created_at=now_of(session),
    )  # fmt: skip
    session.add(row)
    session.flush()
    return _told_webhook(row, 0)


def webhooks(session: Session) -> list[ToldWebhook]:
    """The webhooks, oldest first."""
    waiting = (
        select(func.count(WebhookDelivery.alert_id))
        .where(WebhookDelivery.webhook_id == Webhook.id, WebhookDelivery.state == "pending")
        .correlate(Webhook)
        .scalar_subquery()
    )
    return [
        _told_webhook(row, count) for row, count in session.execute(select(Webhook, waiting).order_by(Webhook.id)).all()
    ]


def remove_webhook(session: Session, id: str) -> ToldWebhook | None:
    """Delete a webhook with what waits for it."""
    row = session.execute(select(Webhook).where(Webhook.id == id)).scalar_one_or_none()
    if row is None:
        return None
    told = _told_webhook(row, 0)
    session.delete(row)
    return told


def deliveries(session: Session, webhook_id: str) -> list[Delivery] | None:
    """The last deliveries of a webhook, newest first; None when there is no such webhook."""
    if session.scalar(select(Webhook.id).where(Webhook.id == webhook_id)) is None:
        return None
    query = (
        select(WebhookDelivery, Row.rule, Run.name)
        .join(Row, Row.id == WebhookDelivery.alert_id)
        .join(Run, Run.id == Row.run_id)
        .where(WebhookDelivery.webhook_id == webhook_id)
        .order_by(WebhookDelivery.alert_id.desc())
        .limit(_NUM_DELIVERIES)
    )
    return [
        Delivery.model_validate(
            {
                "alert_id": row.alert_id, "run_name": name, "rule": rule, "state": row.state, "attempts": row.attempts,
                "status": row.status, "error": row.error, "next_at": row.next_at, "sent_at": row.sent_at,
            }
        )
        for row, rule, name in session.execute(query).all()
    ]  # fmt: skip


def _told(row: Row, run_name: str) -> Alert:
    return Alert.model_validate(
        {
            "id": row.id, "run_id": row.run_id, "run_name": run_name, "rule": row.rule, "severity": SEVERITY[row.rule],  # type: ignore[index]
            "message": row.message, "step": row.step, "time": row.time, "dismissed_at": row.dismissed_at,
            "dismissed_by": row.dismissed_by,
        }
    )  # fmt: skip


def _told_webhook(row: Webhook, num_pending: int) -> ToldWebhook:
    return ToldWebhook(
        id=row.id, name=row.name, host=urlsplit(row.url).hostname or "", created_by=row.created_by, created_at=row.created_at,
        num_pending=num_pending,
    )  # fmt: skip
