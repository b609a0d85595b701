"""The folder that all machines share as the place of runs' files: they stay where engines wrote them."""

import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from backend.artifacts import Artifact, ExportedFiles, OutOfPlace, StoredFile, Unreadable
from backend.s3_bucket import OnChunk

_CHUNK_BYTES = 1024 * 1024


def _nothing() -> None:
    pass


class FolderStore:
    """Everything stays where engines wrote it."""

    is_remote = False

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    @property
    def title(self) -> str:
        """What people call it."""
        return str(self.run_dir)

    def check(self, *, writes: bool = False) -> None:
        """Nothing can be wrong with it that the disk's own checks do not say."""

    def keep(self, artifact: Artifact | ExportedFiles, files: list[StoredFile], on_chunk: OnChunk) -> None:
        """It is kept already."""

    def fetch(self, artifact: Artifact, on_chunk: Callable[[], None] = _nothing) -> str | None:
        """A checkpoint is here already, or nowhere: whether it is whole says `damage_of`."""
        return None

    def keep_file(self, key: str, path: Path) -> None:
        """It is kept already."""

    def fetch_file(self, key: str, path: Path) -> str | None:
        """It is here already, or nowhere."""
        return None

    def remove(self, artifact: Artifact | ExportedFiles) -> None:
        """Remove a checkpoint's folder, or what can be removed of it."""
        shutil.rmtree(self.local(artifact), ignore_errors=True)

    def local(self, artifact: Artifact | ExportedFiles) -> Path:
        """Its place on this machine's disk."""
        return self.run_dir / artifact.name

    def path_of(self, artifact: Artifact | ExportedFiles, name: str) -> Path:
        """A file of a checkpoint. Raises Unreadable for names, folders and links that lead out of their place."""
        return _inside(_inside(self.run_dir / artifact.above, artifact.path), name)

    def size(self, artifact: Artifact | ExportedFiles, name: str) -> int:
        """Bytes of a file of a checkpoint. Raises Unreadable."""
        try:
            status = self.path_of(artifact, name).lstat()
        except OSError:
            raise Unreadable("is not on this machine's disk") from None
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("is not a plain file")
        return status.st_size

    def chunks(self, artifact: Artifact | ExportedFiles, name: str, num_bytes: int) -> Iterator[bytes]:
        """The first bytes of a file of a checkpoint, in pieces. Raises OSError when it ends early."""
        path = self.path_of(artifact, name)
        with path.open("rb") as file:
            remaining = num_bytes
            while remaining:
                chunk = file.read(min(_CHUNK_BYTES, remaining))
                if not chunk:
                    raise OSError(f"{path} ended {remaining} bytes early")
                remaining -= len(chunk)
                yield chunk

    @contextmanager
    def opened(self, artifact: Artifact) -> Iterator[BinaryIO]:
        """A file of traces. Raises OSError."""
        with self.local(artifact).open("rb") as file:
            yield file


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OutOfPlace("lies outside its checkpoint")
    return path
