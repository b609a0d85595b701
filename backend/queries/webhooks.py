"""Webhooks as people set, test and see them. The caller commits."""

from datetime import datetime, timedelta
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, delete, func, select
from sqlalchemy.orm import Session

from backend.access import Principal
from backend.alert_records import Alert, Webhook, WebhookDelivery
from backend.alerts import TEST, Delivery, WebhookCreate
from backend.alerts import Webhook as ToldWebhook
from backend.database import now_of
from backend.ids import new_id
from backend.limits import Limits
from backend.problems import Refusal
from backend.tables import Run

_NUM_DELIVERIES = 50
TEST_EVERY = timedelta(seconds=5)
"""Each test is a request to somebody's server."""


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
    return _told(row, 0)


def webhooks(session: Session) -> list[ToldWebhook]:
    """The webhooks, oldest first."""
    rows = session.scalars(select(Webhook).order_by(Webhook.id)).all()
    return [_told(row, _num_pending(session, row.id)) for row in rows]


def remove_webhook(session: Session, id: str) -> ToldWebhook | None:
    """Delete a webhook with what waits for it; None when there is no such webhook."""
    row = _row(session, id)
    if row is None:
        return None
    told = _told(row, 0)
    _forget_tests(session, id)
    session.delete(row)
    return told


def rotate_secret(session: Session, id: str) -> tuple[ToldWebhook, int] | None:
    """Sign what is claimed for sending from now on with another secret, whose number is the second; None without such a webhook."""
    row = _row(session, id, locks=True)
    if row is None:
        return None
    row.secret_version += 1
    session.flush()
    return _told(row, _num_pending(session, id)), row.secret_version


def queue_test(session: Session, id: str, by: str) -> Delivery | None:
    """Queue a test alert, in the place of the webhook's last one; None when there is no such webhook.

    Refuses (409) within seconds after the last one.
    """
    webhook = _row(session, id, locks=True)
    if webhook is None:
        return None
    now = now_of(session)
    last = session.scalar(select(func.max(Alert.time)).where(*_is_test_of(id)))
    if last is not None and now - last < TEST_EVERY:
        seconds = (now - last).total_seconds()
        raise Refusal(
            409,
            f"The last test alert to this webhook was asked for {seconds:.1f} s ago, and at most one is sent every "
            f"{TEST_EVERY.total_seconds():.0f} s; try again then.",
        )
    _forget_tests(session, id)
    # Dismissed from the beginning: nobody is told of it but the webhook.
    test = Alert(
        id=new_id(), project_id=webhook.project_id, run_id=None, rule=TEST, occurrence=id, time=now, step=None, dismissed_at=now,
        dismissed_by=by, message="This is a test alert: what is sent here arrives. No run has changed.",
    )  # fmt: skip
    session.add(test)
    session.flush()
    delivery = WebhookDelivery(alert_id=test.id, webhook_id=id, project_id=webhook.project_id, next_at=now)
    session.add(delivery)
    session.flush()
    return _delivery(delivery, TEST, None, now)


def deliveries(session: Session, webhook_id: str) -> list[Delivery] | None:
    """The last deliveries of a webhook, newest first; None when there is no such webhook."""
    if _row(session, webhook_id) is None:
        return None
    query = (
        select(WebhookDelivery, Alert.rule, Alert.time, Run.name)
        .join(Alert, Alert.id == WebhookDelivery.alert_id)
        .outerjoin(Run, Run.id == Alert.run_id)
        .where(WebhookDelivery.webhook_id == webhook_id)
        .order_by(WebhookDelivery.alert_id.desc())
        .limit(_NUM_DELIVERIES)
    )
    return [_delivery(row, rule, name, time) for row, rule, time, name in session.execute(query).all()]


def _row(session: Session, id: str, *, locks: bool = False) -> Webhook | None:
    query = select(Webhook).where(Webhook.id == id)
    return session.scalars(query.with_for_update() if locks else query).one_or_none()


def _is_test_of(webhook_id: str) -> tuple[ColumnElement[bool], ...]:
    return Alert.run_id.is_(None), Alert.rule == TEST, Alert.occurrence == webhook_id


def _forget_tests(session: Session, webhook_id: str) -> None:
    earlier = delete(Alert).where(*_is_test_of(webhook_id))
    session.execute(earlier.execution_options(synchronize_session=False))


def _num_pending(session: Session, id: str) -> int:
    query = select(func.count(WebhookDelivery.alert_id)).where(
        WebhookDelivery.webhook_id == id, WebhookDelivery.state == "pending"
    )
    return session.scalar(query) or 0


def _told(row: Webhook, num_pending: int) -> ToldWebhook:
    return ToldWebhook(
        id=row.id, name=row.name, host=urlsplit(row.url).hostname or "", created_by=row.created_by, created_at=row.created_at,
        num_pending=num_pending,
    )  # fmt: skip


def _delivery(row: WebhookDelivery, rule: str, run_name: str | None, time: datetime) -> Delivery:
    return Delivery.model_validate(
        {
            "alert_id": row.alert_id, "run_name": run_name, "rule": rule, "time": time, "state": row.state, "attempts": row.attempts,
            "status": row.status, "error": row.error, "next_at": row.next_at, "sent_at": row.sent_at,
        }
    )  # fmt: skip
