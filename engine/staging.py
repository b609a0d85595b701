"""A folder that exists whole or not at all: written beside its place under a name of its own, synced, renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from engine.manifest import ManifestFile, hashed

_STAGING = ".tmp-"


def staging_beside(folder: Path) -> Path:
    """A new, empty folder that only this user can enter, beside `folder`: a rename stays on one file system."""
    _make_folders(folder.parent)
    return Path(tempfile.mkdtemp(prefix=f"{folder.name}{_STAGING}", dir=folder.parent))


def is_staging(path: Path) -> bool:
    """Whether a path is named like a folder that was never finished, or that its successor has replaced."""
    return _STAGING in path.name


def belongs_to(path: Path, folder: Path) -> bool:
    """Whether a path beside a folder's is the folder, or what is to become it."""
    return path.name == folder.name or path.name.startswith(f"{folder.name}{_STAGING}")


def write_synced(path: Path, content: bytes) -> str:
    """Write a new file that only this user can read, down to the disk; its sha256. Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    digest = hashlib.sha256()
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        rest = memoryview(content)
        while rest:
            written = rest[: file.write(rest)]
            digest.update(written)
            rest = rest[len(written) :]
        os.fsync(descriptor)
    return digest.hexdigest()


def sealed_files(folder: Path) -> list[ManifestFile]:
    """Every file below a staging folder, made private and written down to the disk.

    Libraries write weights by name and not through us, so their bytes are hashed here, from the file that is synced.
    """
    return [_sealed(path, folder) for path in sorted(folder.rglob("*")) if not path.is_dir()]


def put_in_place(staging: Path, folder: Path) -> None:
    """Sync a staging folder and give it its name; what has that name already is replaced."""
    for path in sorted((path for path in staging.rglob("*") if path.is_dir()), reverse=True):
        path.chmod(0o700)
        sync(path)
    sync(staging)
    replaced = None
    if (
        folder.exists()
    ):  # of an attempt that is repeated under its number, or damaged: no rename goes over a full folder
        replaced = staging_beside(folder)
        folder.rename(replaced / folder.name)
    staging.rename(folder)
    sync(folder.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def remove_leftovers(run_folder: Path) -> None:
    """Remove what crashed attempts of a run have not finished. Below a supervisor worker/garbage.py does it, by age."""
    for path in run_folder.glob("attempts/*/checkpoints/*"):
        if is_staging(path):
            shutil.rmtree(path, ignore_errors=True)


def _sealed(path: Path, folder: Path) -> ManifestFile:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        assert stat.S_ISREG(status.st_mode), f"{path} is not a plain file"
        os.fchmod(descriptor, 0o600)
        digest = hashed(descriptor)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return ManifestFile(name=path.relative_to(folder).as_posix(), num_bytes=status.st_size, sha256=digest)


def _make_folders(folder: Path) -> None:
    """Make a folder and those above it; each is in its parent on the disk before anything is written below it."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Write a file or folder down to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
