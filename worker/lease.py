"""The lease of a claimed run, seen from its holder: renewed in time, and given up before anyone else may claim."""

import logging
import time

from sqlalchemy.exc import InterfaceError, OperationalError

from backend.database import Database
from backend.queries.claims import LEASE_SECONDS, Claim, LeaseLost, renew_lease

# Shares of the lease. Without a renewal the engine is told to stop, then killed, while the lease still runs: two engines
# never overlap. Of 60 s these are 10, 40 and 52 s.
_RENEW, _STOP, _KILL = 1 / 6, 2 / 3, 13 / 15
assert 0 < _RENEW < _STOP < _KILL < 1

DATABASE_OUTAGES = (OperationalError, InterfaceError)
"""Errors that pass: the server restarts, the file is locked. Anything else is a fault of ours."""

_log = logging.getLogger(__name__)


class Lease:
    """Times are of the monotonic clock: setting the wall clock neither ends nor prolongs a lease."""

    def __init__(self, database: Database, claim: Claim, seconds: float = LEASE_SECONDS) -> None:
        self.database = database
        self.claim = claim
        self.seconds = seconds
        self._renewed_at = time.monotonic()

    def keep(self) -> None:
        """Renew the lease when it is time. Raises LeaseLost; an outage of the database only leaves it unrenewed."""
        if self.silent_seconds < _RENEW * self.seconds:
            return
        asked_at = time.monotonic()
        try:
            with self.database.write() as session:
                renew_lease(session, self.claim.run_id, self.claim.fence, lease_seconds=self.seconds)
        except DATABASE_OUTAGES as error:
            _log.warning("The lease of run %s was not renewed: %s", self.claim.run_id, error)
            return
        self._renewed_at = asked_at

    def keep_or_lose(self) -> None:
        """Renew the lease when it is time. Raises LeaseLost, also once an outage has lasted too long."""
        self.keep()
        if self.is_nearly_over:
            raise LeaseLost(f"The lease of run {self.claim.run_id} could not be renewed in time.")

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last renewal was asked for."""
        return time.monotonic() - self._renewed_at

    @property
    def is_overdue(self) -> bool:
        """Whether the engine has to stop, because the lease was not renewed for so long."""
        return self.silent_seconds > _STOP * self.seconds

    @property
    def is_nearly_over(self) -> bool:
        """Whether the engine has to be gone, because somebody else may soon take the run."""
        return self.silent_seconds > _KILL * self.seconds
