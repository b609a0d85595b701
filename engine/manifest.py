"""What a checkpoint folder says that it holds, and whether it does. It imports without torch: worker and engine both ask."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from engine.frozen import Frozen
from engine.spec import RunSpec

MANIFEST = "manifest.json"
_CHUNK_BYTES = 16 * 1024**2
# What opening a file says of the folder's content: other errors are the disk's.
_OF_THE_CONTENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
# What was the default before: left out like the default, so that checkpoints from then are still their run's.
_FORMER_DEFAULTS = {"gradient_checkpointing": "never"}


class ManifestFile(Frozen):
    """A file of a checkpoint."""

    name: str
    """Path inside the checkpoint folder, such as model.safetensors or trainer/optimizer.safetensors."""
    num_bytes: int
    sha256: str


class Manifest(Frozen):
    """The content of manifest.json."""

    format: Literal[1, 2] = 2
    """1 is of an earlier version: without attempt, spec and versions."""
    step: int
    attempt: int | None = None
    """The fence of the attempt that wrote it."""
    spec_sha256: str | None = None
    """`spec_sha256` of its run's spec."""
    versions: dict[str, str] = {}
    """Of the libraries that wrote it."""
    files: list[ManifestFile]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files, the manifest apart."""
        return sum(file.num_bytes for file in self.files)


class Expected(Frozen):
    """What is known of a checkpoint besides its folder; None is not compared."""

    step: int | None = None
    attempt: int | None = None
    spec_sha256: str | None = None
    manifest_sha256: str | None = None


def spec_sha256(spec: RunSpec) -> str:
    """A hash of what a spec states. Fields at their default are left out, so a field that a later version adds keeps it."""
    text = json.dumps(stated(spec), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def damage_of(folder: Path, expected: Expected, on_chunk: Callable[[], None] = lambda: None) -> str | None:
    """What is wrong with a checkpoint folder, in words; None when it holds what its manifest says and nothing else.

    Hashing a large checkpoint takes longer than a lease; `on_chunk` is called every 16 MiB.
    """
    try:
        return readable_damage_of(folder, expected, on_chunk)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"


def readable_damage_of(folder: Path, expected: Expected, on_chunk: Callable[[], None] = lambda: None) -> str | None:
    """The same. Raises OSError where the disk does not let it be read, which says nothing of what the folder holds."""
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = Manifest.model_validate_json(content)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        return f"it has no readable {MANIFEST} ({error.__class__.__name__})"
    if expected.manifest_sha256 not in (None, hashlib.sha256(content).hexdigest()):
        return f"its {MANIFEST} is not the one that was committed"
    for name in ("step", "attempt", "spec_sha256"):
        stated, known = getattr(manifest, name), getattr(expected, name)
        if None not in (stated, known) and stated != known:
            return f"its {MANIFEST} is of another {'run' if name == 'spec_sha256' else name} ({stated}, not {known})"
    try:
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
        unlisted = sorted(found - {MANIFEST} - {file.name for file in manifest.files})
        if unlisted:
            return f"{unlisted[0]!r} is not in its manifest"
        return next((words for file in manifest.files if (words := _difference(folder, file, on_chunk))), None)
    except OSError as error:
        if error.errno not in _OF_THE_CONTENT:
            raise
        return f"it cannot be read ({error.strerror})"


def hashed(descriptor: int, on_chunk: Callable[[], None] = lambda: None) -> str:
    """The sha256 of an open file, from its beginning."""
    digest = hashlib.sha256()
    position = 0
    while chunk := os.pread(descriptor, _CHUNK_BYTES, position):
        digest.update(chunk)
        position += len(chunk)
        on_chunk()
    return digest.hexdigest()


def _difference(folder: Path, file: ManifestFile, on_chunk: Callable[[], None]) -> str | None:
    path = folder / file.name
    if not path.resolve().is_relative_to(folder.resolve()):
        return f"{file.name!r} lies outside it"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return f"{file.name} is missing"
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return f"{file.name} is not a plain file"
        if status.st_size != file.num_bytes:
            return f"{file.name} has {status.st_size} bytes instead of {file.num_bytes}"
        return None if hashed(descriptor, on_chunk) == file.sha256 else f"{file.name} has another content"
    finally:
        os.close(descriptor)


def stated(value: Any) -> Any:
    """A record as plain values, fields at their default left out; `kind` stays, since it says which record it is."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            name: stated(getattr(value, name))
            for name, field in fields.items()
            if name == "kind" or _is_told(name, getattr(value, name), field.get_default(call_default_factory=True))
        }
    if isinstance(value, list | tuple):
        return [stated(item) for item in value]
    if isinstance(value, dict):
        return {str(key): stated(item) for key, item in value.items()}
    return value


def _is_told(name: str, value: object, default: object) -> bool:
    return value != default and not (name in _FORMER_DEFAULTS and value == _FORMER_DEFAULTS[name])
