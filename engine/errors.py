"""What can end a run, each with the sentence that a person reads."""

from engine.events import FailureKind
from engine.findings import Finding


class RunError(Exception):
    """A run cannot go on. `failure` names why; the message has the value, the limit and the fix."""

    def __init__(self, failure: FailureKind, message: str, findings: list[Finding] | None = None) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message
        self.findings = findings or []


class StopRequested(Exception):
    """Somebody asked the run to stop; raised where no training state is half-changed."""
