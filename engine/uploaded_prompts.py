"""Prompts that somebody uploaded: kept below the home by the sha256 of what they hold, so that a reference never changes. Light."""

import hashlib
import re
from pathlib import Path

from engine.locations import incipit_home
from engine.prompt_files import UnreadableFile

SCHEME = "upload"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1024 * 1024


def upload_reference(sha256: str) -> str:
    """The reference of a spec that stands for these prompts for ever."""
    return f"{SCHEME}:{sha256}"


def is_sha256(text: str) -> bool:
    """Whether a text can name an upload."""
    return _SHA256.fullmatch(text) is not None


def upload_folder(home: Path) -> Path:
    """Where a home keeps uploaded prompts."""
    return home / "prompts"


def upload_path(home: Path, sha256: str) -> Path:
    """The file of an upload, JSON lines with `prompt`, and `answer`, `completion`, `id` where they are known."""
    assert is_sha256(sha256)
    return upload_folder(home) / f"{sha256}.jsonl"


def verified_upload(sha256: str) -> Path:
    """The file of an upload on this machine; UnreadableFile when it is not there, or is not what was uploaded any more."""
    path = upload_path(incipit_home(), sha256)
    try:
        found = file_sha256(path)
    except FileNotFoundError:
        raise UnreadableFile(
            "is not among the uploads on this machine; upload it again, or let API and worker share one INCIPIT_HOME"
        ) from None
    if found != sha256:
        raise UnreadableFile("was changed on the disk since it was uploaded; remove the file and upload it again")
    return path


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
