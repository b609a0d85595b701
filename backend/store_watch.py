"""Whether the store of checkpoints works, asked beside all requests: one that does not answer takes its time to say so."""

import logging
import threading
from typing import Literal

from backend.artifact_store import ArtifactStore
from backend.store_problem import StoreProblem

_SECONDS = 30.0

StoreState = Literal["folder", "bucket", "down"]

_log = logging.getLogger(__name__)


class StoreWatch:
    """Asks a bucket every half a minute, in a thread of its own; a folder is not asked."""

    def __init__(self, store: ArtifactStore, *, seconds: float = _SECONDS) -> None:
        self._store = store
        self._seconds = seconds
        self._problem: str | None = None
        self._is_over = threading.Event()
        if store.is_remote:
            threading.Thread(target=self._watch, name="store-watch", daemon=True).start()

    @property
    def state(self) -> StoreState:
        """Of the last time that it was asked."""
        if not self._store.is_remote:
            return "folder"
        return "bucket" if self._problem is None else "down"

    def close(self) -> None:
        """Stop asking."""
        self._is_over.set()

    def _watch(self) -> None:
        while True:
            before, self._problem = self._problem, self._found()
            if self._problem != before:
                # The log alone has the sentence: whoever asks for health need not be signed in.
                _log.warning("%s", self._problem or f"{self._store.title} works again.")
            if self._is_over.wait(self._seconds):
                return

    def _found(self) -> str | None:
        try:
            self._store.check()
        except StoreProblem as problem:
            return str(problem)
        return None
