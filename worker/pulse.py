"""Whether an engine still works: it touches a file at every token that it samples and every step that it takes."""

import time
from pathlib import Path


class Pulse:
    """Watches one attempt's file. Times are of the monotonic clock, whatever clock stamped the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: int | None = None
        self._changed_at = 0.0

    def silent_seconds(self) -> float:
        """Seconds since a change of the file was seen; 0 before the first one, when models are being loaded."""
        try:
            stamp: int | None = self._path.stat().st_mtime_ns
        except FileNotFoundError:
            stamp = None
        if stamp != self._stamp:
            self._stamp, self._changed_at = stamp, time.monotonic()
        return 0.0 if self._stamp is None else time.monotonic() - self._changed_at
