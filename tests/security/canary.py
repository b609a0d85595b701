"""A file that an attack would make if it worked, and pickles that would make it."""

import os
import pickle  # to make what must never be read
from pathlib import Path


class Canary:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def hostile_pickle(path: Path) -> bytes:
    """Bytes that make the file at `path` when they are unpickled."""
    return pickle.dumps(Canary(path))
