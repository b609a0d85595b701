"""How far an export is, counted in bytes: read, written and sent."""

from __future__ import annotations

import time
from collections.abc import Callable

from engine.disk_space import mebibytes

Report = Callable[[float, str], None]
_EVERY_SECONDS = 0.5  # the worker looks every other second, and each report is a line through a pipe


class ExportMeter:
    """Tells `report` the share of all bytes that are done, and of which part of the work how many."""

    def __init__(self, report: Report, total_bytes: int) -> None:
        self._report = report
        self._total = max(1, total_bytes)
        self._done = 0
        self._part, self._part_total, self._part_done = "", 0, 0
        self._told_at = 0.0

    def begin(self, part: str, num_bytes: int) -> None:
        """Name what is done next, and of how many bytes it is."""
        self._done += max(
            0, self._part_total - self._part_done
        )  # what the part before did in fewer bytes than it was said to
        self._part, self._part_total, self._part_done = part, num_bytes, 0
        self._tell()

    def advance(self, num_bytes: int) -> None:
        """So many bytes more of the part at hand are done."""
        counted = max(0, min(num_bytes, self._part_total - self._part_done))
        self._part_done += counted
        self._done += counted
        if time.monotonic() - self._told_at >= _EVERY_SECONDS:
            self._tell()

    def _tell(self) -> None:
        self._told_at = time.monotonic()
        words = f"{self._part}: {mebibytes(self._part_done)} of {mebibytes(self._part_total)}"
        self._report(min(1.0, self._done / self._total), words)
