"""Files of checkpoints and exports on their way out: single files with Range, whole folders as one tar, both in constant memory."""

import base64
import hashlib
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from backend.exports import Export
from backend.problems import Refusal
from backend.queries.checkpoints import CheckpointFolder
from backend.schemas import Checkpoint
from engine.manifest import MANIFEST, ManifestFile

_CHUNK_BYTES = 1024 * 1024
_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_][\w.\-]{0,127}(/[A-Za-z0-9_][\w.\-]{0,127}){0,5}", re.ASCII)


class StoredFolder:
    """A folder whose files are listed. Nothing else can leave it."""

    def __init__(self, folder: Path, files: Sequence[ManifestFile], made_at: datetime, words: "FolderWords") -> None:
        self.folder = folder
        self._files = {file.name: file for file in files}
        self._made_at = made_at
        self._words = words

    def names(self) -> list[str]:
        """The names of all files."""
        return list(self._files)

    def check(self) -> None:
        """Refusal (410) when a file is gone or has another size, or the manifest is another one; contents are not hashed."""
        for name in self.names():
            path, file = self._checked(name)
            if name == MANIFEST and hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
                raise self._damaged(name, "is not the one that was committed")

    def file(self, name: str, request_headers: Mapping[str, str]) -> Response:
        """The response that sends a file, or the one part of it that Range asks for; its ETag is its sha256.

        Starlette answers several ranges with as many parts, and nonsense without a problem: neither reaches it.
        """
        path, file = self._checked(name)
        headers = {
            "ETag": f'"{file.sha256}"',
            "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(file.sha256)).decode()}:",
            "Cache-Control": "private, no-cache",
        }
        known = re.split(r"\s*,\s*", request_headers.get("if-none-match", "").strip())
        if "*" in known or headers["ETag"] in (tag.removeprefix("W/") for tag in known):
            return Response(status_code=304, headers=headers)
        asked = request_headers.get("range", "")
        is_range = asked.startswith("bytes=") and request_headers.get("if-range", headers["ETag"]) == headers["ETag"]
        if is_range:
            _check_range(asked, file.num_bytes, headers)
        saved_as = f"{self._title()}-{name.replace('/', '-')}"
        kind = FileResponse if is_range else _WholeFile
        return kind(path, headers=headers, media_type="application/octet-stream", filename=saved_as)

    def archive(self) -> Response:
        """The response that streams the whole folder as an uncompressed tar."""
        members = [self._checked(name) for name in self.names()]
        headers = [self._member(file).tobuf(tarfile.PAX_FORMAT) for _, file in members]
        num_bytes = sum(
            len(header) + _padded(file.num_bytes) for header, (_, file) in zip(headers, members, strict=True)
        )
        return StreamingResponse(
            _tar([path for path, _ in members], headers, [file.num_bytes for _, file in members]),
            media_type="application/x-tar",
            headers={
                "Content-Length": str(num_bytes + 2 * tarfile.BLOCKSIZE),
                "Content-Disposition": f'attachment; filename="{self._title()}.tar"',
                "Cache-Control": "private, no-cache",
            },
        )

    def _checked(self, name: str) -> tuple[Path, ManifestFile]:
        """The path of a listed file, and what the list says; Refusal (404, 410) when there is none, or another one."""
        file = self._files.get(name)
        if file is None or not _NAME.fullmatch(name):
            raise Refusal(404, f"The {self._words.noun} has no file {name[:200]!r}; see its list of files.")
        path = _inside(self.folder, name)
        try:
            status = path.lstat()
        except OSError:
            raise self._damaged(name, "is not on this machine's disk") from None
        if not stat.S_ISREG(status.st_mode):
            raise self._damaged(name, "is not a plain file")
        if status.st_size != file.num_bytes:
            raise self._damaged(name, f"has {status.st_size} bytes instead of {file.num_bytes}")
        return path, file

    def _damaged(self, name: str, what: str) -> Refusal:
        """The refusal (410) of a file that is not what it was."""
        return Refusal(410, f"{name} of {self._words.noun} {self._words.id} {what}; {self._words.advice}")

    def _title(self) -> str:
        run_name = re.sub(r"[^A-Za-z0-9]+", "-", self._words.run_name).strip("-")[:60] or "run"
        return f"{run_name}-step-{self._words.step}"

    def _member(self, file: ManifestFile) -> tarfile.TarInfo:
        member = tarfile.TarInfo(f"{self._title()}/{file.name}")
        member.size = file.num_bytes
        member.mode = 0o644
        member.mtime = int(self._made_at.timestamp())
        return member


class FolderWords(NamedTuple):
    """What people are told of a folder."""

    noun: str
    id: str
    run_name: str
    step: int
    advice: str
    """What to do when a file is damaged."""


def stored_export(export: Export, location: str, export_dir: Path) -> StoredFolder:
    """The files of an export, by its folder below that of all exports."""
    assert export.result is not None, "what has files has a result"
    words = FolderWords("export", export.id, export.run_name, export.step, "export the checkpoint again.")
    made_at = export.finished_at or export.created_at
    return StoredFolder(_inside(export_dir, location), export.result.files, made_at, words)


def stored_checkpoint(checkpoint: Checkpoint, location: CheckpointFolder, run_dir: Path) -> StoredFolder:
    """A checkpoint's folder: what its manifest names, and the manifest."""
    attempt = run_dir / checkpoint.run_id / "attempts" / str(location.fence)
    folder = _inside(attempt, location.path)
    num_bytes = 0  # one that is not there is found missing when it is asked for
    with suppress(OSError):
        num_bytes = (folder / MANIFEST).lstat().st_size
    manifest = ManifestFile(name=MANIFEST, num_bytes=num_bytes, sha256=checkpoint.manifest_sha256)
    words = FolderWords(
        "checkpoint", checkpoint.id, checkpoint.run_name, checkpoint.step, "take another checkpoint of this run."
    )
    return StoredFolder(folder, [*checkpoint.files, manifest], checkpoint.created_at, words)


class _WholeFile(FileResponse):
    """A file whose Range is not looked at: it has a unit that we do not know, or is of a file that has changed."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def _check_range(value: str, num_bytes: int, headers: Mapping[str, str]) -> None:
    """Refuses what is not one range inside a file of so many bytes."""
    found = _RANGE.fullmatch(value.strip())
    first, last = (found["first"], found["last"]) if found else ("", "")
    if first:
        is_inside = int(first) < num_bytes and (not last or int(first) <= int(last))
    else:
        is_inside = bool(last) and int(last) > 0 and num_bytes > 0
    if not is_inside:
        told = (
            f"Range is {value[:100]!r} but the file has {num_bytes} bytes; ask for one range inside it, as bytes=0-99."
        )
        raise Refusal(416, told, headers={**headers, "Content-Range": f"bytes */{num_bytes}"})


def _inside(folder: Path, name: str) -> Path:
    """The path of a name below a folder; refuses names and links that lead out of it."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Refusal(404, f"There is no file {name[:200]!r} here; see the checkpoint's list of files.")
    return path


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _tar(paths: list[Path], headers: list[bytes], sizes: list[int]) -> Iterator[bytes]:
    for path, header, size in zip(paths, headers, sizes, strict=True):
        yield header
        with path.open("rb") as file:
            remaining = size
            while remaining:
                chunk = file.read(min(_CHUNK_BYTES, remaining))
                if not chunk:
                    # Too late for a problem: a connection that breaks is how the reader learns of it.
                    raise OSError(f"{path} ended {remaining} bytes early")
                remaining -= len(chunk)
                yield chunk
        yield bytes(_padded(size) - size)
    yield bytes(2 * tarfile.BLOCKSIZE)
