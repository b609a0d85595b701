"""Files of a checkpoint or an export on their way to a folder: each resumed where it stopped, verified, renamed when whole."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from dashboard.api_errors import ApiDown

if TYPE_CHECKING:
    from httpx import Response

    from backend.exports import Export
    from backend.schemas import Checkpoint
    from dashboard.api_client import ApiClient

_MANIFEST = "manifest.json"
_PART = ".part"
_CHUNK_BYTES = 1024 * 1024
_TRIES = 5  # without a byte in between
_NOT_HARMLESS = re.compile(r"[^A-Za-z0-9.]+")


class DownloadFailed(Exception):
    """A download cannot be completed; the message says why and what to do."""


class WantedFile(NamedTuple):
    """A file as a list has it."""

    name: str
    sha256: str
    num_bytes: int | None
    """None for one whose size no list tells."""


@dataclass
class Download:
    """Brings files into a folder. `on_bytes` is told of bytes as they are there, also of those found there."""

    opened: Callable[[str, Mapping[str, str]], AbstractContextManager[Response]]
    """The response to a request for a file by its name, with these headers."""
    files: list[WantedFile]
    """In the order in which they come."""
    folder: Path
    on_bytes: Callable[[int], None] = lambda num_bytes: None
    fetched_bytes: int = 0
    """Bytes that came over the network."""
    retry_seconds: float = 1.0

    def run(self) -> None:
        """Fetch what is missing. Raises DownloadFailed and ApiError; another call goes on where this one stopped."""
        for file in self.files:
            self._bring(*file)

    def _bring(self, name: str, sha256: str, num_bytes: int | None) -> None:
        target = self._path_of(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if _sha256_of(target) != sha256:
                raise DownloadFailed(f"{target} is there already and is another file; choose another --out.")
            self.on_bytes(num_bytes or 0)
            return
        part = target.with_name(target.name + _PART)
        with part.open("ab+") as file:
            _lock(file, part)
            self._fill(file, name, sha256, num_bytes)
            file.flush()
            os.fsync(file.fileno())
            part.replace(target)

    def _fill(self, file: BinaryIO, name: str, sha256: str, num_bytes: int | None) -> None:
        """Complete a part file; one that turns out to be of another content is emptied, so that the next try starts afresh."""
        digest = hashlib.sha256()
        file.seek(0)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
        have = file.tell()
        if num_bytes is not None:
            self.on_bytes(have)
        # It may have been stopped between the last byte and the new name: a server has nothing behind that byte.
        if digest.hexdigest() == sha256:
            return
        failures = 0
        while num_bytes is None or have < num_bytes:
            before = have
            try:
                for chunk in self._chunks(name, sha256, have):
                    file.write(chunk)
                    digest.update(chunk)
                    have += len(chunk)
                    self.fetched_bytes += len(chunk)
                    if num_bytes is not None:
                        self.on_bytes(len(chunk))
                break
            except ApiDown as error:
                file.flush()
                failures = 1 if have > before else failures + 1
                if failures == _TRIES:
                    raise DownloadFailed(f"{error} Start the same command again: it goes on at byte {have}.") from None
                time.sleep(self.retry_seconds)
        if digest.hexdigest() != sha256:
            file.truncate(0)
            raise DownloadFailed(
                f"{name} came with sha256 {digest.hexdigest()[:12]}… but the list says {sha256[:12]}…: the file was changed "
                "on the server, or between two parts of the download. Start the command again, or take another one of the list."
            )

    def _chunks(self, name: str, sha256: str, have: int) -> Iterator[bytes]:
        etag = f'"{sha256}"'
        headers = {"Range": f"bytes={have}-", "If-Range": etag} if have else {}
        with self.opened(name, headers) as response:
            is_part = response.status_code == 206 and response.headers.get("content-range", "").startswith(
                f"bytes {have}-"
            )
            if response.headers.get("etag") != etag or (have and not is_part):
                raise DownloadFailed(
                    f"{name} is not the file any more that was listed (ETag {response.headers.get('etag')}); "
                    "take another checkpoint or export, with another --out."
                )
            yield from response.iter_raw(_CHUNK_BYTES)

    def _path_of(self, name: str) -> Path:
        """Where a file goes; a server cannot make this write outside the folder."""
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or name.endswith(_PART):
            raise DownloadFailed(
                f"The server names a file {name[:100]!r}, which has no place in a folder; nothing was written."
            )
        return self.folder.joinpath(*parts)


def checkpoint_download(client: ApiClient, checkpoint: Checkpoint, folder: Path) -> Download:
    """Of all files of a checkpoint; the manifest comes last, so that a folder with one is complete."""
    files = [WantedFile(file.name, file.sha256, file.num_bytes) for file in checkpoint.files]
    files.append(WantedFile(_MANIFEST, checkpoint.manifest_sha256, None))
    return Download(partial(client.checkpoint_file, checkpoint.id), files, folder)


def export_download(client: ApiClient, export: Export, folder: Path) -> Download:
    """Of all files of an export that has some on the installation."""
    assert export.result is not None, "what has files has a result"
    files = [WantedFile(file.name, file.sha256, file.num_bytes) for file in export.result.files]
    return Download(partial(client.export_file, export.id), files, folder)


def folder_name(checkpoint: Checkpoint) -> str:
    """A harmless name for a checkpoint's folder, such as `prefix-8-step-120`."""
    return f"{harmless(checkpoint.run_name)}-step-{checkpoint.step}"


def harmless(run_name: str) -> str:
    """A run's name as a part of a folder's."""
    return _NOT_HARMLESS.sub("-", run_name).strip("-.") or "run"


def _lock(file: BinaryIO, part: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DownloadFailed(f"Another download is writing {part}; wait for it or choose another --out.") from None


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
