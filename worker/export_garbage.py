"""Removes files of exports that were let go, and what exports that were cut off have left."""

import logging
import os
import shutil
import time
from pathlib import Path

from backend.database import Database
from backend.queries.exports import export_folders
from engine.staging import belongs_to
from worker.garbage import size_and_newest

_EVERY_SECONDS = 60.0
_MIN_AGE_SECONDS = 3600.0  # a process that was declared dead has ended by then
_AT_ONCE = 500  # names in a query

_log = logging.getLogger(__name__)


class ExportGarbage:
    """Looks at the folder of exports once a minute."""

    def __init__(self, database: Database, folder: Path, *, min_age_seconds: float = _MIN_AGE_SECONDS) -> None:
        self.database = database
        self.folder = folder
        self.min_age_seconds = min_age_seconds
        self._due_at = 0.0

    def turn(self) -> int:
        """Remove what nobody can fetch, if a minute has passed; the bytes that were freed."""
        if time.monotonic() < self._due_at or not self.folder.is_dir():
            return 0
        self._due_at = time.monotonic() + _EVERY_SECONDS
        names = sorted(one.name for one in os.scandir(self.folder) if one.is_dir(follow_symlinks=False))
        freed = 0
        for start in range(0, len(names), _AT_ONCE):
            with self.database.read() as session:
                known = export_folders(session, names[start : start + _AT_ONCE])
            for name, found in known.items():  # one without a row may be another installation's
                freed += self._clean(self.folder / name, found.needed, is_let_go=found.is_let_go)
        if freed:
            _log.info("Files of exports that nobody can fetch any more were removed: %s bytes.", freed)
        return freed

    def _clean(self, folder: Path, needed: str | None, *, is_let_go: bool) -> int:
        freed = 0
        for entry in os.scandir(folder):
            path = Path(entry.path)
            is_needed = needed is not None and belongs_to(path, folder / needed)
            if is_needed or not entry.is_dir(follow_symlinks=False):
                continue
            size, newest = size_and_newest(path)
            if is_let_go or time.time() - newest >= self.min_age_seconds:
                shutil.rmtree(path, ignore_errors=True)
                freed += size
        if needed is None and not any(os.scandir(folder)):
            folder.rmdir()
        return freed
