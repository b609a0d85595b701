"""When a run whose attempt failed for a reason that may pass is tried again: later each time, and not for ever."""

from dataclasses import dataclass
from datetime import datetime, timedelta

RETRY_SECONDS = 30.0
"""Before the first retry; doubled for each further one without a new checkpoint in between."""
MAX_RETRY_SECONDS = 900.0
RETRYABLE = frozenset({"oom_host", "gpu_error", "disk_full", "server_unreachable", "rank_lost"})
"""What an engine names and what may pass by itself: memory and disk are shared with others, a GPU can be reset, and a rollout
server or a process of the run started again."""


@dataclass(frozen=True)
class Retry:
    """The next try at a run."""

    not_before: datetime
    words: str
    """One sentence that says when it goes on."""


def next_try(now: datetime, *, attempt: int, max_attempts: int, base_seconds: float, is_innocent: bool) -> Retry | None:
    """The try behind attempt number `attempt` without progress; None when that was the last one.

    Where the run itself did nothing wrong (`is_innocent`: its worker is gone), the first retry comes at once.
    """
    if attempt >= max_attempts:
        return None
    num_doublings = attempt - 2 if is_innocent else attempt - 1
    seconds = 0.0 if num_doublings < 0 else min(MAX_RETRY_SECONDS, base_seconds * 2.0**num_doublings)
    moment = now + timedelta(seconds=seconds)
    when = f"in {seconds:.0f} s, at {moment:%H:%M:%S} UTC" if seconds else "at once"
    return Retry(moment, f"It goes on {when} (attempt {attempt + 1} of {max_attempts}).")
