"""Alerts and webhooks of the stand-in API."""

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from backend.alerts import (
    SEVERITY,
    Alert,
    AlertPage,
    AlertRules,
    CreatedWebhook,
    Delivery,
    Webhook,
    WebhookCreate,
)
from backend.schemas import Problem
from engine.findings import Finding

router = APIRouter()
NOW = datetime.now(UTC)
ALERTS = [
    Alert(
        id=f"a-{number}", run_id=run_id, run_name=name, rule=rule, severity=SEVERITY[rule], message=message, step=40, time=NOW,
        dismissed_at=None, dismissed_by=None,
    )
    for number, run_id, name, rule, message in (
        (3, "r-failed", "prefix 8, batch 4096", "failed", "The GPU's memory ran out; halve micro_batch_rollouts."),
        (2, "r-running", "prefix 32", "accuracy", "Step 40: the full-length accuracy is 0.310, its best was 0.520 (limit 0.1 below)."),
        (1, "r-p8", "prefix 8", "finished", "Finished at step 120: all steps are done."),
    )
]  # fmt: skip
WEBHOOK = Webhook(id="w-1", name="Slack", host="hooks.slack.com", created_by="local", created_at=NOW, num_pending=1)
DELIVERIES = [
    Delivery(alert_id="a-3", run_name="prefix 8, batch 4096", rule="failed", time=NOW, state="pending", attempts=2, status=500,
             error="The answer was 500; 2xx counts as received.", next_at=NOW, sent_at=None),
    Delivery(alert_id="a-1", run_name="prefix 8", rule="finished", time=NOW, state="sent", attempts=1, status=200, error="",
             next_at=None, sent_at=NOW),
]  # fmt: skip

TEST_DELIVERY = DELIVERIES[1].model_copy(
    update={"alert_id": "a-9", "run_name": None, "rule": "test", "state": "pending", "attempts": 0, "status": None, "sent_at": None}
)  # fmt: skip
SENT = {"state": "sent", "attempts": 1, "status": 204, "sent_at": NOW}

_TESTS: list[Delivery] = []
_DISMISSED: set[str] = set()


@router.get("/alerts")
def list_alerts(is_open: bool = True, cursor: str | None = None) -> AlertPage:
    """Of the open ones a single page; of all two, the second with the oldest."""
    told = [one for one in ALERTS if not is_open or one.id not in _DISMISSED]
    items = told if is_open else told[2:] if cursor == "older" else told[:2]
    return AlertPage(items=items, num_open=len(told), next_cursor="older" if not is_open and cursor is None else None)


@router.post("/alerts/{alert_id}/dismiss")
def dismiss(alert_id: str) -> Alert:
    _DISMISSED.add(alert_id)
    return next(one for one in ALERTS if one.id == alert_id)


@router.get("/alert-rules")
def rules() -> AlertRules:
    return AlertRules()


@router.put("/alert-rules")
def set_rules(body: AlertRules) -> AlertRules:
    return body


@router.get("/webhooks")
def webhooks() -> list[Webhook]:
    return [WEBHOOK]


@router.post("/webhooks")
def create_webhook(wanted: WebhookCreate) -> Any:
    if not wanted.url.startswith("https"):
        said = "url begins with 'http'; only https is taken, and http to this machine on a local stack."
        body = Problem(
            type="about:blank",
            title="Problem",
            status=422,
            detail=said,
            instance="/",
            errors=[Finding(field="url", message=said)],
        )
        return JSONResponse(body.model_dump(), 422, media_type="application/problem+json")
    return CreatedWebhook(**WEBHOOK.model_dump(), secret="whsec_of_the_tests")


@router.post("/webhooks/{webhook_id}/test", status_code=201)
def test() -> Any:
    if _TESTS and _TESTS[0].state == "pending":
        said = "The last test alert to this webhook was asked for 1.0 s ago."
        body = Problem(type="about:blank", title="Problem", status=409, detail=said, instance="/")
        return JSONResponse(body.model_dump(), 409, media_type="application/problem+json")
    _TESTS[:] = [TEST_DELIVERY]
    return TEST_DELIVERY


@router.post("/webhooks/{webhook_id}/rotate-secret")
def rotate() -> CreatedWebhook:
    return CreatedWebhook(**WEBHOOK.model_dump(), secret="whsec_of_after_the_change")


@router.get("/webhooks/{webhook_id}/deliveries")
def deliveries() -> list[Delivery]:
    found = [*_TESTS, *DELIVERIES]
    _TESTS[:] = [one.model_copy(update=SENT) for one in _TESTS]  # when it is asked for again, it has arrived
    return found
