"""Where events go: one JSON line each, flushed at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from engine.events import EventBase, RunEvent

E = TypeVar("E", bound=EventBase)


class Journal:
    """The append-only `events.jsonl` of an attempt, and anyone who wants to listen on the way."""

    def __init__(self, path: Path, listener: Callable[[RunEvent], None] | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._listener = listener

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def emit(self, kind: type[E], **values: Any) -> None:
        """Write an event, stamped with the current time."""
        event = kind(time=time.time(), **values)
        self._file.write(event.model_dump_json() + "\n")
        self._file.flush()
        if self._listener is not None:
            self._listener(event)  # type: ignore[arg-type]
