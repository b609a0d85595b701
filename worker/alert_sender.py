"""Sends due alerts in a thread beside the control process's turns, which must not wait for other people's servers."""

import logging
import threading
from collections.abc import Sequence

from backend.database import Database
from backend.queries.outbox import Outgoing, claim_due, note_outcome
from backend.webhook_sending import deliver, webhook_secret
from worker.lease import DATABASE_OUTAGES

_CLOSE_SECONDS = 5.0  # an answer that takes longer is not waited for: the alert is sent again
_AT_ONCE = 4  # with ten seconds each, within the minute that a claim lasts

_log = logging.getLogger(__name__)


class AlertSender:
    """At most one thread at a time. A process that dies between sending and noting it lets the alert be sent twice, never lost."""

    def __init__(self, database: Database, signing_secret: bytes, networks: Sequence[str]) -> None:
        self.database = database
        self._signing_secret = signing_secret
        self._networks = networks
        self._thread: threading.Thread | None = None
        self._is_closing = threading.Event()

    def turn(self) -> None:
        """Begin to send what is due, unless that is going on already."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._send_all, name="alert-sender", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Begin nothing more and let what is being written be written: the database is closed behind this."""
        self._is_closing.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def send_due(self) -> int:
        """Send the next few deliveries; how many were due."""
        with self.database.write() as session:
            due = claim_due(session, limit=_AT_ONCE)
        for one in due:
            self._send(one)
        return len(due)

    def _send(self, one: Outgoing) -> None:
        status, error = deliver(one, self._secret_of(one), self._networks)
        if error:  # by its id: the address may be a secret
            _log.warning("Alert %s did not reach webhook %s: %s", one.alert_id, one.webhook_id, error)
        with self.database.write() as session:
            note_outcome(session, one, status=status, error=error)

    def _secret_of(self, one: Outgoing) -> str:
        return webhook_secret(self._signing_secret, one.webhook_id, one.secret_version)

    def _send_all(self) -> None:
        try:
            while not self._is_closing.is_set() and self.send_due():
                pass
        except DATABASE_OUTAGES as error:
            _log.warning("The database does not answer, alerts wait: %s", error)
        except Exception:
            _log.exception("Alerts were not sent; they are tried again.")
