"""What a backup says that it holds. It is written last: a folder with a manifest is a complete backup."""

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Literal

from engine.frozen import Frozen

MANIFEST = "backup.json"
FILES = "files"
"""Folder of what lay in the home."""
KEPT = ("runs", "prompts", "models", "data", "signing_secret")
"""What of the home is kept: neither logs and locks, nor the broker's messages, which are rung for again, nor what a hub gives again."""
_CHUNK_BYTES = 1024 * 1024


class BackupError(RuntimeError):
    """Why there is no backup, or why it cannot be restored: one sentence with the fix."""


class BackupFile(Frozen):
    """One file of a backup."""

    name: str
    num_bytes: int
    sha256: str


class BackupManifest(Frozen):
    """The content of backup.json."""

    format: Literal[1] = 1
    made_at: datetime
    version: str
    """Of Incipit."""
    schema_revision: str
    """Of the database."""
    database: Literal["sqlite", "postgresql"]
    num_rows: dict[str, int]
    """By table."""
    checkpoints: dict[str, str]
    """Of each checkpoint that is whole in this backup the folder below `runs`, with the sha256 of its manifest."""
    lost_checkpoints: list[str]
    """Checkpoints of the database that were removed, or were damaged, when their files were copied."""
    store_url: str = ""
    """The bucket that had the checkpoints, of which none is in this backup; empty is that they lay in the home."""
    files: list[BackupFile]

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)


def copied(source: Path, target: Path) -> tuple[int, str]:
    """Copy a file for this user alone; its bytes and sha256. What grows meanwhile is copied up to where it ended at the start."""
    for folder in reversed(target.parents):
        folder.mkdir(exist_ok=True, mode=0o700)  # of several at once only the last would get the mode
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("xb") as writer:
        target.chmod(0o600)
        left = num_bytes = source.stat().st_size
        while left and (chunk := reader.read(min(left, _CHUNK_BYTES))):
            writer.write(chunk)
            digest.update(chunk)
            left -= len(chunk)
    return num_bytes - left, digest.hexdigest()


def sha256_of(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
