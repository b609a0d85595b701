"""What need not be computed twice on this machine: JSON files under INCIPIT_HOME/cache, named by a hash of all they depend on."""

import hashlib
import logging
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel

from engine.locations import incipit_home

Record = TypeVar("Record", bound=BaseModel)
_log = logging.getLogger("engine")


class JsonCache(Generic[Record]):
    """Records of one kind."""

    def __init__(self, name: str, record: type[Record]) -> None:
        self.folder = incipit_home() / "cache" / name
        self.record = record

    def find(self, parts: Iterable[str]) -> Record | None:
        """The record that was kept for these parts, None when there is none."""
        try:
            return self.record.model_validate_json(self._path(parts).read_text())
        except (OSError, ValueError):  # absent, or half-written by a machine that lost power: compute it again
            return None

    def keep(self, parts: Iterable[str], record: Record) -> None:
        """Store a record for the next run; a cache that cannot be written costs time, not the run."""
        path = self._path(parts)
        staged = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            staged.write_text(record.model_dump_json())
            staged.replace(path)
        except OSError as error:
            _log.warning("Nothing could be kept in %s: %s", self.folder, error)

    def _path(self, parts: Iterable[str]) -> Path:
        return self.folder / f"{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()}.json"
