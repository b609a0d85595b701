"""Removes from a bucket what no record speaks of any more, and from a worker's disk the copies that nobody has wanted for long."""

import logging
import shutil
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path

from backend.artifact_store import ArtifactStore
from backend.artifacts import EXPORTS, UPLOADS
from backend.database import Database
from backend.queries.exports import export_folders
from backend.queries.garbage import RunFolders, note_garbage, run_folders, stored_names
from backend.queries.prompt_files import known_sha256
from backend.s3_bucket import StoredObject
from backend.s3_store import S3Store
from backend.store_problem import StoreProblem
from engine.uploaded_prompts import is_sha256
from worker.garbage import MIN_AGE_SECONDS, folders_in, size_and_newest
from worker.lease import DATABASE_OUTAGES

_EVERY_SECONDS = 6 * 3600.0
_NAMES_AT_ONCE = 500

_log = logging.getLogger(__name__)


class StoreGarbage:
    """Goes through a bucket four times a day, in a thread of its own: the control process has a lease to keep."""

    def __init__(self, database: Database, store: ArtifactStore, *, min_age_seconds: float = MIN_AGE_SECONDS) -> None:
        self.database = database
        self.store = store
        self.min_age_seconds = min_age_seconds
        self._due_at = 0.0
        self._thread: threading.Thread | None = None
        self._is_over = threading.Event()

    def turn(self) -> None:
        """Begin when it is due."""
        is_at_work = self._thread is not None and self._thread.is_alive()
        if not isinstance(self.store, S3Store) or is_at_work or time.monotonic() < self._due_at:
            return
        self._due_at = time.monotonic() + _EVERY_SECONDS
        self._thread = threading.Thread(target=self._work, name="store-garbage", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End with the object at hand."""
        self._is_over.set()

    def collect(self) -> int:
        """Go through all runs; the bytes that were freed. Raises StoreProblem."""
        assert isinstance(self.store, S3Store)
        bucket, freed = self.store.bucket, 0
        before = datetime.now(UTC) - timedelta(seconds=self.min_age_seconds)
        for key, upload, began in bucket.unfinished_uploads():
            if began < before:
                bucket.give_up_upload(key, upload)
        # One listing of all: a request for each run would be a hundred times as many.
        for folder, objects in groupby(bucket.listed(""), key=lambda one: one.key.partition("/")[0]):
            if self._is_over.is_set():
                break
            if folder == EXPORTS:
                freed += self._clean_exports(self.store, list(objects), before)
                continue
            old = [one for one in objects if one.modified_at < before]
            freed += self._clean_uploads(self.store, old) if folder == UPLOADS else self._clean(self.store, folder, old)
        return freed

    def _work(self) -> None:
        try:
            self.collect()
        except (StoreProblem, *DATABASE_OUTAGES) as error:
            _log.warning("Garbage of the store is looked for again in %.0f s: %s", _EVERY_SECONDS, error)

    def _clean_uploads(self, store: S3Store, old: list[StoredObject]) -> int:
        sha256_of = {one: one.key.removeprefix(f"{UPLOADS}/").removesuffix(".jsonl") for one in old}
        freed = 0
        for start in range(0, len(old), _NAMES_AT_ONCE):
            some = old[start : start + _NAMES_AT_ONCE]
            with self.database.read() as session:
                known = known_sha256(session, [sha256_of[one] for one in some])
            for one in some:
                if is_sha256(sha256_of[one]) and sha256_of[one] not in known:
                    store.bucket.remove(one.key)
                    freed += one.num_bytes
        return freed

    def _clean_exports(self, store: S3Store, stored: list[StoredObject], before: datetime) -> int:
        """Of exports that we know, what was let go, and what a claim that was given up has left."""
        parts = {one: one.key.split("/") for one in stored}
        ids = sorted({of[1] for of in parts.values() if len(of) > 3})
        freed = 0
        for start in range(0, len(ids), _NAMES_AT_ONCE):
            with self.database.read() as session:
                known = export_folders(session, ids[start : start + _NAMES_AT_ONCE])
            for one, of in parts.items():
                found = known.get(of[1]) if len(of) > 3 else None
                if found and found.needed != of[2] and (found.is_let_go or one.modified_at < before):
                    store.bucket.remove(one.key)
                    freed += one.num_bytes
        return freed

    def _clean(self, store: S3Store, run_id: str, old: list[StoredObject]) -> int:
        with self.database.read() as session:
            facts = run_folders(session, run_id, min_age_seconds=self.min_age_seconds)
            known = stored_names(session, run_id, min_age_seconds=self.min_age_seconds)
        if facts is None:  # of another installation, perhaps: what we do not know is not ours to remove
            return 0
        num_objects = num_bytes = 0
        for one in old:
            if _is_garbage(one, facts, known) and not self._is_over.is_set():
                store.bucket.remove(one.key)
                num_objects, num_bytes = num_objects + 1, num_bytes + one.num_bytes
        if num_objects:
            _log.info(
                "Run %s: %s files that no record speaks of removed from the store, %s bytes.",
                run_id,
                num_objects,
                num_bytes,
            )
            with self.database.write() as session:
                note_garbage(session, run_id, num_folders=num_objects, num_bytes=num_bytes)
        return num_bytes


def _is_garbage(stored: StoredObject, facts: RunFolders, known: frozenset[str]) -> bool:
    """Whether an object is of an attempt that is over and recorded to its end, and no row leads to it."""
    parts = stored.key.split("/")
    if len(parts) < 4 or parts[1] != "attempts" or not parts[2].isdecimal():
        return False
    attempt = int(parts[2])
    if not facts.is_dead(attempt) or attempt not in facts.settled:
        return False
    return not any("/".join(parts[:end]) in known for end in range(4, len(parts) + 1))


class LocalCopies:
    """The checkpoints on a worker's disk that are in the bucket as well."""

    def __init__(self, database: Database, store: ArtifactStore, *, min_age_seconds: float = MIN_AGE_SECONDS) -> None:
        self.database = database
        self.store = store
        self.min_age_seconds = min_age_seconds

    def drop(self) -> int:
        """Remove those that were not wanted for long, of runs that nobody works on; the bytes that were freed."""
        freed = 0
        if not isinstance(self.store, S3Store):
            return freed
        for run_folder in folders_in(self.store.run_dir):
            copies = [folder for folder in _copies_in(run_folder) if self._is_old(folder)]
            if not copies:
                continue
            with self.database.read() as session:
                facts = run_folders(session, run_folder.name, min_age_seconds=self.min_age_seconds)
            if facts is None or facts.is_held:
                continue
            for folder in copies:
                # What is not recorded yet is nowhere else.
                if int(folder.relative_to(run_folder).parts[1]) in facts.settled:
                    freed += size_and_newest(folder)[0]
                    shutil.rmtree(folder, ignore_errors=True)
        return freed

    def _is_old(self, folder: Path) -> bool:
        return time.time() - size_and_newest(folder)[1] >= self.min_age_seconds


def _copies_in(run_folder: Path) -> list[Path]:
    """Checkpoints and folders of traces of all attempts of a run."""
    attempts = [folder for folder in folders_in(run_folder / "attempts") if folder.name.isdecimal()]
    return [copy for one in attempts for copy in (*folders_in(one / "checkpoints"), *folders_in(one, "traces"))]
