"""What a checkpoint folder says it holds, and whether it does. (The engine writes it; see engine/checkpoint.py.)"""

import hashlib
from collections.abc import Callable
from pathlib import Path

from backend.schemas import CheckpointFile
from engine.frozen import Frozen

MANIFEST = "manifest.json"
_CHUNK_BYTES = 16 * 1024**2


class Manifest(Frozen):
    """The content of manifest.json."""

    format: int
    step: int
    files: list[CheckpointFile]


def is_intact(folder: Path, manifest_sha256: str, on_chunk: Callable[[], None]) -> bool:
    """Whether the folder holds what was committed: the manifest with that sha256, and every file that it lists.

    Hashing a large checkpoint takes longer than a lease; `on_chunk` is called every 16 MiB.
    """
    try:
        content = (folder / MANIFEST).read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest_sha256:
            return False
        files = Manifest.model_validate_json(content).files
        return all(_sha256(folder / file.name, file.num_bytes, on_chunk) == file.sha256 for file in files)
    except (OSError, ValueError):
        return False


def _sha256(path: Path, num_bytes: int, on_chunk: Callable[[], None]) -> str | None:
    if path.stat().st_size != num_bytes:
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            on_chunk()
    return digest.hexdigest()
