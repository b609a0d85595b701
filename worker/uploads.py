"""Brings the files of an attempt into the store, in a thread of its own: a supervisor has a lease to keep meanwhile."""

import hashlib
import logging
import threading
import time
from pathlib import Path

from backend.artifact_store import ArtifactStore
from backend.artifacts import Artifact, StoredFile, Unreadable
from backend.store_problem import StoreProblem
from engine.manifest import MANIFEST, Manifest, ManifestFile

PATIENCE_SECONDS = 600.0
"""A store that fails is asked again for so long; then the run goes back to the queue with its files where they are."""
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 30.0
_LOOK_SECONDS = 0.1

_log = logging.getLogger(__name__)


class StoreUnavailable(Exception):
    """The store has failed for too long; the message says how."""


class _GivenUp(Exception):
    pass


class Uploads:
    """One after the other, each as its event asks for it. What the disk has lost before it was stored is done, but not whole."""

    def __init__(self, store: ArtifactStore, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.store = store
        self.patience_seconds = patience_seconds
        self._done: dict[Artifact, bool] = {}
        self._thread: threading.Thread | None = None
        self._given_up = threading.Event()
        self._failure: BaseException | None = None
        self._trouble: str | None = None
        self._is_trouble_told = False

    def is_done(self, artifact: Artifact) -> bool:
        """Whether it need not be waited for; the first question begins it. Raises StoreUnavailable."""
        if artifact in self._done:
            return True
        if self._thread is None:
            self._begin(artifact)
            return False
        if self._thread.is_alive():
            return False
        self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return artifact in self._done

    def is_whole(self, artifact: Artifact) -> bool:
        """Whether all of it is in the store."""
        return self._done.get(artifact, False)

    def wait(self) -> None:
        """Give the upload at hand a moment."""
        if self._thread is not None:
            self._thread.join(_LOOK_SECONDS)

    def untold_trouble(self) -> str | None:
        """Why the upload at hand was not done at the first try, told once for each time that the store fails."""
        if self._trouble is None or self._is_trouble_told:
            return None
        self._is_trouble_told = True
        return (
            f"Files wait to be stored, and the run's record with them: {self._trouble} It is tried again for "
            f"{self.patience_seconds:.0f} s."
        )

    def close(self) -> None:
        """Give up what is at hand; its thread ends with the next piece."""
        self._given_up.set()

    def _begin(self, artifact: Artifact) -> None:
        self._given_up.clear()
        self._thread = threading.Thread(target=self._work, args=(artifact,), name="upload", daemon=True)
        self._thread.start()

    def _work(self, artifact: Artifact) -> None:
        try:
            self._done[artifact] = self._store(artifact)
            self._trouble, self._is_trouble_told = None, False
        except _GivenUp:
            pass
        except BaseException as error:
            self._failure = error

    def _store(self, artifact: Artifact) -> bool:
        """Whether all of it is in the store now; False when the disk does not hold it any more."""
        wait, deadline = _FIRST_WAIT_SECONDS, time.monotonic() + self.patience_seconds
        while True:
            files = _files(artifact, self.store.local(artifact))
            if files is None:
                return False
            try:
                self.store.keep(artifact, files, self._on_chunk)
                return True
            except Unreadable as error:
                # Either it was saved again meanwhile, whose own event follows, or the disk has damaged it.
                _log.warning("%s %s", artifact.name, error)
                return False
            except (StoreProblem, OSError) as problem:
                self._trouble = str(problem)
                if time.monotonic() + wait > deadline:
                    raise StoreUnavailable(str(problem)) from None
                _log.warning("%s is not stored yet: %s", artifact.name, problem)
            if self._given_up.wait(wait):
                raise _GivenUp
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)

    def _on_chunk(self, _num_bytes: int) -> None:
        if self._given_up.is_set():
            raise _GivenUp


def files_of(manifest_path: Path, sha256: str) -> list[ManifestFile] | None:
    """The files that a manifest lists; None when the folder is gone or holds another checkpoint by now."""
    try:
        content = manifest_path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if hashlib.sha256(content).hexdigest() != sha256:
        return None
    return Manifest.model_validate_json(content).files


def _files(artifact: Artifact, path: Path) -> list[StoredFile] | None:
    """What is to be stored, the manifest last; None when it is not there any more."""
    if artifact.manifest_sha256:
        listed = files_of(path / MANIFEST, artifact.manifest_sha256)
        if listed is None:
            return None
        own = StoredFile(MANIFEST, (path / MANIFEST).stat().st_size, artifact.manifest_sha256)
        return [*(StoredFile(file.name, file.num_bytes, file.sha256) for file in listed), own]
    try:
        with path.open("rb") as file:
            return [StoredFile("", path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())]
    except FileNotFoundError:
        return None
