"""The events of a run folder over all its attempts, to the end or as they come."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.events import RunEvent, Started, read_events
from incipit.tracking.adapter import outcome_of

_PAUSE_SECONDS = 0.5


class RunFolder:
    """A run folder, which is only read: the run that writes into it never waits for whoever reads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_over: dict[int, bool] = {}
        self._offsets: dict[int, int] = {}

    def spec(self) -> dict[str, Any]:
        """The spec as a document. OSError where there is none."""
        document: dict[str, Any] = json.loads((self._folder / "spec.json").read_text())
        return document

    def identity(self) -> tuple[str, float] | None:
        """The run's id and Unix time of its start, from the very first event; None before there is one."""
        for attempt in self._attempts():
            with self._path(attempt).open("rb") as file:
                line = file.readline()
            for event, _ in read_events(self._path(attempt)):
                return hashlib.sha256(line).hexdigest()[:16], event.time
        return None

    def events(self, *, follow: bool) -> Iterator[RunEvent]:
        """Events in order. Steps that a later attempt does again are left out, as far as that attempt exists by now.

        With `follow` it goes on until the newest attempt has finished, failed or stopped.
        """
        while True:
            attempts = self._attempts()
            for attempt in attempts:
                last_step = min((self._resumed_from(later) for later in attempts if later > attempt), default=math.inf)
                for event, offset in read_events(self._path(attempt), self._offsets.get(attempt, 0)):
                    self._offsets[attempt] = offset
                    self._is_over[attempt] = self._is_over.get(attempt, False) or outcome_of(event) is not None
                    if (getattr(event, "step", None) or 0) <= last_step:
                        yield event
            if not follow or (attempts and self._is_over.get(attempts[-1], False)):
                return
            time.sleep(_PAUSE_SECONDS)

    def _attempts(self) -> list[int]:
        paths = self._folder.glob("attempts/*/events.jsonl")
        return sorted(int(path.parent.name) for path in paths if path.parent.name.isdecimal())

    def _path(self, attempt: int) -> Path:
        return self._folder / "attempts" / str(attempt) / "events.jsonl"

    def _resumed_from(self, attempt: int) -> float:
        for event, _ in read_events(self._path(attempt)):
            return event.resumed_from_step if isinstance(event, Started) else math.inf
        return math.inf
