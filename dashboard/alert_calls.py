"""What the dashboard asks of the API about alerts and webhooks."""

from collections.abc import Mapping
from typing import Any

from backend.alerts import Alert, AlertPage, AlertRules, CreatedWebhook, Delivery, Webhook
from dashboard.api_transport import ApiTransport


class AlertCalls(ApiTransport):
    """Part of ApiClient."""

    def alerts(self, *, is_open: bool = True, cursor: str | None = None) -> AlertPage:
        """A page of alerts, newest first; only those that nobody has dismissed if `is_open`."""
        return self._get("/api/v1/alerts", AlertPage, {"is_open": is_open, "cursor": cursor})

    def dismiss_alert(self, alert_id: str) -> Alert:
        return self._post(f"/api/v1/alerts/{alert_id}/dismiss", Alert, None)

    def alert_rules(self) -> AlertRules:
        return self._get("/api/v1/alert-rules", AlertRules)

    def set_alert_rules(self, rules: Mapping[str, Any]) -> AlertRules:
        """Replace the project's rules; the API judges them."""
        return self._call("PUT", "/api/v1/alert-rules", AlertRules, tries=1, json=dict(rules))

    def webhooks(self) -> list[Webhook]:
        return self._get("/api/v1/webhooks", list[Webhook])

    def create_webhook(self, name: str, url: str) -> CreatedWebhook:
        """Send alerts there from now on; the answer has the secret, which is not told again."""
        return self._post("/api/v1/webhooks", CreatedWebhook, {"name": name, "url": url})

    def delete_webhook(self, webhook_id: str) -> Webhook:
        return self._call("DELETE", f"/api/v1/webhooks/{webhook_id}", Webhook, tries=1)

    def test_webhook(self, webhook_id: str) -> Delivery:
        """Queue a test alert; its delivery is among `deliveries` from then on."""
        return self._post(f"/api/v1/webhooks/{webhook_id}/test", Delivery, None)

    def rotate_webhook_secret(self, webhook_id: str) -> CreatedWebhook:
        """Sign with another secret, which the answer has and which is not told again."""
        return self._post(f"/api/v1/webhooks/{webhook_id}/rotate-secret", CreatedWebhook, None)

    def deliveries(self, webhook_id: str) -> list[Delivery]:
        """The last alerts that were sent there, newest first."""
        return self._get(f"/api/v1/webhooks/{webhook_id}/deliveries", list[Delivery])
