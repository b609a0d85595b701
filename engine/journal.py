"""Where events go: one JSON line each, whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from engine.events import EventBase, RunEvent, Warned

E = TypeVar("E", bound=EventBase)


class Journal:
    """The append-only `events.jsonl` of an attempt, and anyone who wants to listen on the way."""

    def __init__(self, path: Path, listener: Callable[[RunEvent], None] | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: what a full disk refused must not come again when the file is closed.
        self._file = path.open("ab", buffering=0)
        self._listener = listener
        self._warned: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def warn_once(self, code: str, message: str) -> None:
        """Write a warning unless this attempt has written one with the same code."""
        if code not in self._warned:
            self._warned.add(code)
            self.emit(Warned, code=code, message=message)

    def emit(self, kind: type[E], **values: Any) -> None:
        """Write an event, stamped with the current time. OSError leaves the journal as it was."""
        event = kind(time=time.time(), **values)
        end = self._file.seek(0, os.SEEK_END)
        line = memoryview(event.model_dump_json().encode() + b"\n")
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError:
            self._file.truncate(end)  # half a line would spoil the next one
            raise
        if self._listener is not None:
            self._listener(event)  # type: ignore[arg-type]
