"""What can end a run, each with the sentence that a person reads."""

import errno

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


def is_out_of_space(error: BaseException) -> bool:
    """Whether the operating system refused a write for want of space: disk, quota or limit on the size of files."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
