"""The lease of a claimed analysis, question or export, seen from its holder: a shorter outage of the database loses nothing."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from backend.asked import Found
from backend.database import Database
from backend.queries.analyses import LEASE_SECONDS, AnalysisClaim, end_analysis, give_back_analysis, report_progress
from engine.analysis_spec import AnalysisProgress
from engine.findings import Finding
from worker.lease import DATABASE_OUTAGES

REPORT_SECONDS = 2.0
"""Between two looks at the lease: cancelling takes as long."""
_LAST = 13 / 15  # of the lease, then the work ends: the engine is gone before anybody else may begin
_RETRY_SECONDS = 1.0

_log = logging.getLogger(__name__)
T = TypeVar("T")


class AnalysisLease:
    """Times are of the monotonic clock: setting the wall clock neither ends nor prolongs a lease."""

    def __init__(self, database: Database, claim: AnalysisClaim, seconds: float = LEASE_SECONDS) -> None:
        self.claim = claim
        self._database = database
        self._seconds = seconds
        self._kept_at = self._asked_at = time.monotonic()

    @property
    def is_nearly_over(self) -> bool:
        """Whether the work has to end, because somebody else may soon take it."""
        return time.monotonic() - self._kept_at > _LAST * self._seconds

    def keep(self, progress: AnalysisProgress | None = None) -> bool:
        """Extend it and store how far the work is; False when the claim is lost, or an outage has lasted too long."""
        self._asked_at = time.monotonic()
        try:
            with self._database.write() as session:
                is_ours = report_progress(session, self.claim, progress)
        except DATABASE_OUTAGES as error:
            _log.warning("The progress of %s was not stored, it goes on meanwhile: %s", self.claim.analysis_id, error)
            return not self.is_nearly_over
        self._kept_at = self._asked_at
        return is_ours

    def keep_when_due(self) -> None:
        """To be called all the time while something takes long; whether the claim still holds is looked at behind it."""
        if time.monotonic() - self._asked_at > REPORT_SECONDS:
            self.keep()

    def end(self, answer: Found | list[Finding], traces: bytes | None = None) -> bool:
        """Store the answer; False when the claim was lost meanwhile."""

        def store() -> bool:
            with self._database.write() as session:
                return end_analysis(session, self.claim, answer, traces)

        return self.despite_outages(store)

    def give_back(self) -> None:
        """Queue it again, for another worker."""

        def store() -> None:
            with self._database.write() as session:
                give_back_analysis(session, self.claim)

        self.despite_outages(store)

    def despite_outages(self, act: Callable[[], T]) -> T:
        """What `act` returns, as soon as the database answers. Raises the outage once the lease is nearly over."""
        while True:
            try:
                return act()
            except DATABASE_OUTAGES as error:
                if self.is_nearly_over:
                    raise
                _log.warning("The database did not answer, %s waits: %s", self.claim.analysis_id, error)
            time.sleep(_RETRY_SECONDS)
