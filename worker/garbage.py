"""Removes what dead attempts left in the run folders: half-written checkpoints, and folders that no row speaks of."""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from backend.database import Database
from backend.queries.garbage import RunFolders, note_garbage, run_folders
from engine.staging import is_staging

# Long enough for a process that was declared dead to have ended, and for a person to look at what is left.
MIN_AGE_SECONDS = 24 * 3600.0
_RUNS_PER_TURN = 10
# The control process must come back to its lease; what is left waits for the next round.
_BUDGET_SECONDS = 5.0

_log = logging.getLogger(__name__)


class GarbageCollector:
    """Goes through the run folders, a few at each turn, and begins again at the end."""

    def __init__(self, database: Database, run_dir: Path, *, min_age_seconds: float = MIN_AGE_SECONDS) -> None:
        self.database = database
        self.run_dir = run_dir
        self.min_age_seconds = min_age_seconds
        self._last = ""

    def turn(self) -> int:
        """Clean the next few run folders; the bytes that were freed."""
        if not self.run_dir.is_dir():
            return 0
        names = sorted(entry.name for entry in os.scandir(self.run_dir) if entry.is_dir(follow_symlinks=False))
        following = [name for name in names if name > self._last][:_RUNS_PER_TURN]
        deadline = time.monotonic() + _BUDGET_SECONDS
        freed = 0
        self._last = ""
        for name in following:
            if time.monotonic() > deadline:
                break
            freed += self._clean(name, deadline)
            self._last = name
        return freed

    def _clean(self, run_id: str, deadline: float) -> int:
        with self.database.read() as session:
            facts = run_folders(session, run_id, min_age_seconds=self.min_age_seconds)
        if facts is None:  # of another installation's database, perhaps: what we do not know is not ours to remove
            return 0
        num_folders = num_bytes = 0
        for folder in garbage(self.run_dir / run_id, facts):
            if time.monotonic() > deadline:
                break
            size, newest = size_and_newest(folder)
            if time.time() - newest < self.min_age_seconds:
                continue
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                num_folders, num_bytes = num_folders + 1, num_bytes + size
        if num_folders:
            _log.info("Run %s: %s folders of attempts that are over removed, %s bytes.", run_id, num_folders, num_bytes)
            with self.database.write() as session:
                note_garbage(session, run_id, num_folders=num_folders, num_bytes=num_bytes)
        return num_bytes


def garbage(run_folder: Path, facts: RunFolders) -> Iterator[Path]:
    """The folders of dead attempts that nothing needs, whatever their age."""
    for attempt_folder in folders_in(run_folder / "attempts"):
        if not attempt_folder.name.isdecimal() or not facts.is_dead(attempt := int(attempt_folder.name)):
            continue
        # Of a lost attempt that nobody has recorded to its end, a folder without a row may still get one.
        is_settled = attempt in facts.settled
        has_rows = attempt in facts.traced or any(fence == attempt for fence, _ in facts.checkpoints)
        if is_settled and not has_rows and attempt < facts.fence:
            yield attempt_folder
            continue
        for folder in folders_in(attempt_folder / "checkpoints"):
            path = folder.relative_to(attempt_folder).as_posix()
            if is_staging(folder) or (is_settled and (attempt, path) not in facts.checkpoints):
                yield folder


def folders_in(parent: Path, name: str | None = None) -> list[Path]:
    """The folders in a folder, or the one of that name; none of what a link leads to."""
    if parent.is_symlink() or not parent.is_dir():
        return []
    entries = [entry for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False)]
    return [Path(entry.path) for entry in entries if name in (None, entry.name)]


def size_and_newest(folder: Path) -> tuple[int, float]:
    """Bytes below a folder, and the time of the last change in it, Unix seconds."""
    size, newest = 0, folder.lstat().st_mtime
    for path in folder.rglob("*"):
        status = path.lstat()
        size += status.st_size if not path.is_dir() else 0
        newest = max(newest, status.st_mtime)
    return size, newest
