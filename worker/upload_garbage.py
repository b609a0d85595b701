"""Removes uploaded prompts that nobody has in a list any more, and what uploads that were cut off have left."""

import logging
import time
from pathlib import Path

from backend.database import Database
from backend.queries.prompt_files import known_sha256
from engine.uploaded_prompts import is_sha256, upload_folder
from worker.garbage import MIN_AGE_SECONDS

_EVERY_SECONDS = 3600.0
_AT_ONCE = 500  # names in a query

_log = logging.getLogger(__name__)


class UploadGarbage:
    """Looks at the folder of uploads once an hour."""

    def __init__(self, database: Database, home: Path, *, min_age_seconds: float = MIN_AGE_SECONDS) -> None:
        self.database = database
        self.folder = upload_folder(home)
        self.min_age_seconds = min_age_seconds
        self._due_at = 0.0

    def turn(self) -> int:
        """Remove what is old and unknown, if an hour has passed; how many files that were.

        A file that is uploaded again is written anew, and so is young until its row is there.
        """
        if time.monotonic() < self._due_at or not self.folder.is_dir():
            return 0
        self._due_at = time.monotonic() + _EVERY_SECONDS
        old = [path for path in self.folder.iterdir() if path.is_file() and self._is_old(path)]
        removed = 0
        for start in range(0, len(old), _AT_ONCE):
            paths = old[start : start + _AT_ONCE]
            with self.database.read() as session:
                known = known_sha256(session, [path.stem for path in paths if is_sha256(path.stem)])
            for path in paths:
                if path.stem not in known:
                    path.unlink(missing_ok=True)
                    removed += 1
        if removed:
            _log.info("%s uploaded files that no list names any more were removed.", removed)
        return removed

    def _is_old(self, path: Path) -> bool:
        return time.time() - path.lstat().st_mtime >= self.min_age_seconds
