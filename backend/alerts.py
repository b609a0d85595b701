"""Alerts: what people are told of runs without looking at them, by which rules, and where else it is sent."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from backend.access import KeyName
from engine.frozen import Frozen

Rule = Literal["finished", "failed", "health", "divergence", "accuracy", "no_progress"]
Severity = Literal["info", "warning", "error"]
SEVERITY: dict[Rule, Severity] = {
    "finished": "info", "failed": "error", "health": "warning", "divergence": "warning", "accuracy": "warning", "no_progress": "warning",
}  # fmt: skip
TEST: Literal["test"] = "test"
"""The rule of an alert that somebody sends to try a webhook."""
DeliveryState = Literal["pending", "sent", "failed"]


class AlertRules(Frozen):
    """Of what the people of a project are told. A divergence that is not finite ends its run, and so is told as failed."""

    model_config = ConfigDict(strict=True)  # no form of text sends these

    finished: bool = True
    """A run has finished."""
    failed: bool = True
    """A run has failed."""
    health: bool = True
    """A run warns of itself: an alarm of its spec's `health`, or its sentinel."""
    divergence_factor: Annotated[float, Field(gt=1, le=1e6)] | None = 3.0
    """The full-length reverse KL of an evaluation is so many times its best so far; empty for never."""
    accuracy_drop: Annotated[float, Field(gt=0, le=1)] | None = 0.1
    """The full-length accuracy of an evaluation is so much below its best so far; empty for never."""
    no_progress_minutes: Annotated[int, Field(ge=1, le=10_080)] | None = 30
    """A run at work has recorded nothing for so long; empty for never."""


class Alert(Frozen):
    """Something about a run that a person should know."""

    id: str
    run_id: str
    run_name: str
    rule: Rule
    severity: Severity
    message: str
    """One sentence."""
    step: int | None
    time: datetime
    dismissed_at: datetime | None
    dismissed_by: str | None


class AlertPage(Frozen):
    items: list[Alert]
    num_open: int
    """Alerts that nobody has dismissed."""
    next_cursor: str | None


class WebhookCreate(Frozen):
    """An address that alerts of the project are sent to."""

    name: KeyName
    """What it is, such as `Slack, #training`."""
    url: Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[\x21-\x7e]+$")]
    """https; of an incoming webhook of Slack or Discord, or of a program of yours. It is not shown again."""


class Webhook(Frozen):
    """An address that alerts are sent to."""

    id: str
    name: str
    host: str
    """Of its address, the rest of which may be a secret."""
    created_by: str
    created_at: datetime
    num_pending: int
    """Alerts that wait to be sent, or to be sent again."""


class CreatedWebhook(Webhook):
    """A webhook at the only moment at which its present secret can be read: when it is made, and when the secret is changed."""

    secret: str
    """Key of the HMAC-SHA256 in the header X-Incipit-Signature: `t=<Unix seconds>,v1=<hex of HMAC(secret, t + "." + body)>`."""


class Delivery(Frozen):
    """An alert on its way to a webhook."""

    alert_id: str
    run_name: str | None
    """None of a test alert, which is of no run."""
    rule: Rule | Literal["test"]
    time: datetime
    """When it was raised, or asked for."""
    state: DeliveryState
    attempts: int
    status: int | None
    """Of the last answer."""
    error: str
    """Why there was none, or none that counts."""
    next_at: datetime | None
    """When it is tried again."""
    sent_at: datetime | None
