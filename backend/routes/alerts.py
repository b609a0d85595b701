"""Alerts: what runs have to say, by which rules, and where it is sent."""

from typing import Annotated

from fastapi import Query, Response

from backend.alerts import Alert as ToldAlert
from backend.alerts import AlertPage, AlertRules, CreatedWebhook, Delivery, Webhook, WebhookCreate
from backend.cursors import from_cursor, to_cursor
from backend.dependencies import Caller, Config, Cursor, Id, Reading, Store, errors, page_size
from backend.locked_route import locked_router
from backend.problems import invalid, not_found
from backend.queries import alerts as queries
from backend.queries import webhooks as webhook_queries
from backend.queries.raising import rules_of
from backend.webhook_address import NotAllowed, check_url
from backend.webhook_sending import webhook_secret
from engine.findings import Finding

router = locked_router(tags=["alerts"])

_Page = Annotated[int, page_size(50)]


@router.get("/alerts", operation_id="list_alerts", responses=errors())
def list_alerts(
    session: Reading,
    limit: _Page,
    is_open: Annotated[bool, Query(description="Only alerts that nobody has dismissed.")] = True,
    cursor: Cursor = None,
) -> AlertPage:
    """Alerts, newest first."""
    items = queries.alerts(session, is_open=is_open, before=from_cursor(cursor) if cursor else None, limit=limit)
    next_cursor = to_cursor(items[-1].id) if len(items) == limit else None
    return AlertPage(items=items, num_open=queries.num_open(session), next_cursor=next_cursor)


@router.post("/alerts/{alert_id}/dismiss", operation_id="dismiss_alert", responses=errors(403, 404, 413, 415))
def dismiss_alert(alert_id: Id, database: Store, caller: Caller) -> ToldAlert:
    """Take an alert out of the open ones, for everybody in the project."""
    with database.write() as session:
        found = queries.dismiss(session, alert_id, caller.id)
    if found is None:
        raise not_found("alert", alert_id)
    return found


@router.get("/alert-rules", operation_id="get_alert_rules", responses=errors())
def get_alert_rules(session: Reading, caller: Caller) -> AlertRules:
    """Of what the people of the project are told."""
    return rules_of(session, caller.home_project)


@router.put("/alert-rules", operation_id="put_alert_rules", responses=errors(403, 413, 415))
def put_alert_rules(body: AlertRules, database: Store, caller: Caller) -> AlertRules:
    """Change of what the people of the project are told, from now on."""
    with database.write() as session:
        queries.set_rules(session, caller.home_project, body)
    return body


@router.get("/webhooks", operation_id="list_webhooks", responses=errors())
def list_webhooks(session: Reading) -> list[Webhook]:
    """Where alerts are sent."""
    return webhook_queries.webhooks(session)


@router.post(
    "/webhooks",
    operation_id="create_webhook",
    status_code=201,
    responses=errors(403, 409, 413, 415),
)
def create_webhook(
    body: WebhookCreate, database: Store, caller: Caller, settings: Config, response: Response
) -> CreatedWebhook:
    """Send alerts of the project to an address from now on. The answer holds the secret of its signatures, once."""
    is_local_stack = settings.local_token is not None
    try:
        check_url(body.url, may_be_local=is_local_stack)
    except NotAllowed as error:
        raise invalid([Finding(field="url", message=str(error))]) from None
    with database.write() as session:
        made = webhook_queries.add_webhook(
            session, body, owner=caller, may_be_local=is_local_stack, limits=settings.limits
        )
    response.headers["Location"] = f"/api/v1/webhooks/{made.id}/deliveries"
    return CreatedWebhook(**made.model_dump(), secret=webhook_secret(settings.signing_secret(), made.id))


@router.delete("/webhooks/{webhook_id}", operation_id="delete_webhook", responses=errors(403, 404, 413, 415))
def delete_webhook(webhook_id: Id, database: Store) -> Webhook:
    """Send nothing there any more."""
    with database.write() as session:
        removed = webhook_queries.remove_webhook(session, webhook_id)
    if removed is None:
        raise not_found("webhook", webhook_id)
    return removed


@router.post(
    "/webhooks/{webhook_id}/test",
    operation_id="test_webhook",
    status_code=201,
    responses=errors(403, 404, 409, 413, 415),
)
def test_webhook(webhook_id: Id, database: Store, caller: Caller, response: Response) -> Delivery:
    """Send a test alert, signed and tried again like any other, in the place of the last test; its delivery tells how it went."""
    with database.write() as session:
        queued = webhook_queries.queue_test(session, webhook_id, caller.id)
    if queued is None:
        raise not_found("webhook", webhook_id)
    response.headers["Location"] = f"/api/v1/webhooks/{webhook_id}/deliveries"
    return queued


@router.post(
    "/webhooks/{webhook_id}/rotate-secret", operation_id="rotate_webhook_secret", responses=errors(403, 404, 413, 415)
)
def rotate_webhook_secret(webhook_id: Id, database: Store, settings: Config) -> CreatedWebhook:
    """Sign with another secret from now on, which the answer holds, once; the one before is worth nothing any more."""
    with database.write() as session:
        rotated = webhook_queries.rotate_secret(session, webhook_id)
    if rotated is None:
        raise not_found("webhook", webhook_id)
    webhook, version = rotated
    return CreatedWebhook(**webhook.model_dump(), secret=webhook_secret(settings.signing_secret(), webhook_id, version))


@router.get("/webhooks/{webhook_id}/deliveries", operation_id="list_deliveries", responses=errors(404))
def list_deliveries(webhook_id: Id, session: Reading) -> list[Delivery]:
    """The last 50 alerts that were sent to an address, or wait for it."""
    found = webhook_queries.deliveries(session, webhook_id)
    if found is None:
        raise not_found("webhook", webhook_id)
    return found
