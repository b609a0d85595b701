"""What a test of a fault measures."""

import time

from tests.faults.installation import Installation
from tests.faults.promises import broken_promises, repeated_steps, stale_steps
from tests.faults.reliability import Record
from tests.worker.runs import recorded_steps


class Trial:
    """What a test tells of its fault: `inject` at the moment of each injection, `recovered`, and `check` at the end."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._injected_at = 0.0

    def inject(self) -> None:
        """The fault comes now."""
        self.record.tried += 1
        self._injected_at = time.monotonic()

    def recovered(self) -> float:
        """All is as before; the seconds since the fault."""
        seconds = time.monotonic() - self._injected_at
        self.record.seconds.append(seconds)
        return seconds

    def check(self, installation: Installation, *run_ids: str) -> None:
        """The promises hold for these runs; what the fault has cost them is noted."""
        for run_id in run_ids:
            self.record.steps_lost += repeated_steps(installation.run_dir, run_id)
            steps = recorded_steps(installation.database, run_id)
            with installation.database.read() as session:
                self.record.steps_twice += len(steps) - len(set(steps)) + len(stale_steps(session, run_id))
        assert broken_promises(installation.database, installation.run_dir, run_ids) == []
