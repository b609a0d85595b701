"""Deliveries that are due: claimed for a while, then noted as sent, to be tried again, or given up. The caller commits."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from backend.alert_records import Alert, Webhook, WebhookDelivery
from backend.database import now_of
from backend.tables import Experiment, Run

MAX_ATTEMPTS = 8
_CLAIM = timedelta(seconds=60)
_FIRST_WAIT = timedelta(seconds=30)
_LONGEST_WAIT = timedelta(hours=1)


@dataclass(frozen=True)
class SentRun:
    """The run that an alert is about."""

    id: str
    name: str
    experiment: str


@dataclass(frozen=True)
class Outgoing:
    """One alert that this process has the right to send."""

    alert_id: str
    webhook_id: str
    attempt: int
    url: str
    may_be_local: bool
    secret_version: int
    project_id: str
    run: SentRun | None
    """None of a test alert."""
    rule: str
    message: str
    step: int | None
    time: datetime


def claim_due(session: Session, *, limit: int) -> list[Outgoing]:
    """Due deliveries, which nobody else takes for a minute."""
    now = now_of(session)
    query = (
        select(WebhookDelivery, Webhook, Alert, Run.name, Experiment.name)
        .join(Webhook, Webhook.id == WebhookDelivery.webhook_id)
        .join(Alert, Alert.id == WebhookDelivery.alert_id)
        .outerjoin(Run, Run.id == Alert.run_id)
        .outerjoin(Experiment, Experiment.id == Run.experiment_id)
        .where(WebhookDelivery.state == "pending", WebhookDelivery.next_at <= now)
        .order_by(WebhookDelivery.next_at, WebhookDelivery.alert_id)
        .limit(limit)
        .with_for_update(skip_locked=True, of=WebhookDelivery)
    )
    taken = []
    for delivery, webhook, alert, run_name, experiment in session.execute(query).all():
        delivery.attempts += 1
        delivery.next_at = now + _CLAIM
        taken.append(
            Outgoing(
                alert.id, webhook.id, delivery.attempts, webhook.url, webhook.may_be_local, webhook.secret_version, webhook.project_id,
                None if alert.run_id is None else SentRun(alert.run_id, run_name, experiment), alert.rule, alert.message, alert.step,
                alert.time,
            )
        )  # fmt: skip
    return taken


def note_outcome(session: Session, sent: Outgoing, *, status: int | None, error: str) -> None:
    """Store how an attempt went, unless another process has taken the delivery meanwhile. An empty error is success."""
    now = now_of(session)
    values: dict[str, object] = {"status": status, "error": error[:500]}
    if not error:
        values |= {"state": "sent", "sent_at": now, "next_at": None}
    elif sent.attempt >= MAX_ATTEMPTS:
        values |= {"state": "failed", "next_at": None}
    else:
        values |= {"next_at": now + min(_FIRST_WAIT * 2 ** (sent.attempt - 1), _LONGEST_WAIT)}
    session.execute(
        update(WebhookDelivery)
        .where(
            WebhookDelivery.alert_id == sent.alert_id,
            WebhookDelivery.webhook_id == sent.webhook_id,
            WebhookDelivery.attempts == sent.attempt,
            WebhookDelivery.state == "pending",
        )
        .values(values)
    )
