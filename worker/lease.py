"""The lease of a claimed run, seen from its holder: renewed in time, and given up before anyone else may claim."""

import logging
import time

from sqlalchemy.exc import InterfaceError, OperationalError

from backend.database import Database
from backend.queries.claims import LEASE_SECONDS, Claim, renew_lease

RENEW_SECONDS = 10.0
# Without a renewal the engine is told to stop, then killed, while the lease still runs: two engines never overlap.
STOP_AFTER_SECONDS = 40.0
KILL_AFTER_SECONDS = 52.0
assert RENEW_SECONDS < STOP_AFTER_SECONDS < KILL_AFTER_SECONDS < LEASE_SECONDS

DATABASE_OUTAGES = (OperationalError, InterfaceError)
"""Errors that pass: the server restarts, the file is locked. Anything else is a fault of ours."""

_log = logging.getLogger(__name__)


class Lease:
    """Times are of the monotonic clock: setting the wall clock neither ends nor prolongs a lease."""

    def __init__(self, database: Database, claim: Claim) -> None:
        self.database = database
        self.claim = claim
        self._renewed_at = time.monotonic()

    def keep(self) -> None:
        """Renew the lease when it is time. Raises LeaseLost; an outage of the database only leaves it unrenewed."""
        if self.silent_seconds < RENEW_SECONDS:
            return
        asked_at = time.monotonic()
        try:
            with self.database.write() as session:
                renew_lease(session, self.claim.run_id, self.claim.fence)
        except DATABASE_OUTAGES as error:
            _log.warning("The lease of run %s was not renewed: %s", self.claim.run_id, error)
            return
        self._renewed_at = asked_at

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last renewal was asked for."""
        return time.monotonic() - self._renewed_at
