"""Files of checkpoints and exports on their way out: single files with Range, whole folders as one tar, both in constant memory.

A bucket's own server sends single files: whoever asks is sent to an address that it takes for five minutes.
"""

import base64
import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from backend.artifact_store import ArtifactStore
from backend.artifacts import Artifact, ExportedFiles, OutOfPlace, Unreadable
from backend.exports import Export
from backend.problems import Refusal
from backend.queries.checkpoints import CheckpointFolder
from backend.s3_store import S3Store
from backend.schemas import Checkpoint
from backend.store_problem import StoreProblem
from engine.manifest import MANIFEST, ManifestFile

_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_][\w.\-]{0,127}(/[A-Za-z0-9_][\w.\-]{0,127}){0,5}", re.ASCII)


class FolderWords(NamedTuple):
    """What people are told of a folder."""

    noun: str
    id: str
    run_name: str
    step: int
    advice: str
    """What to do when a file is damaged."""


class StoredFolder:
    """A folder in a store whose files are listed. Nothing else can leave it. A store that fails is a Refusal (503)."""

    def __init__(
        self,
        store: ArtifactStore,
        artifact: Artifact | ExportedFiles,
        files: Sequence[ManifestFile],
        made_at: datetime,
        words: FolderWords,
    ) -> None:
        """Where the artifact has a manifest, that is one of its files too."""
        self.store = store
        self.artifact = artifact
        self._files = {file.name: file for file in files}
        self._made_at = made_at
        self._words = words

    @property
    def folder(self) -> Path:
        """Where it is on this machine's disk, or would be."""
        return self.store.local(self.artifact)

    def names(self) -> list[str]:
        """The names of all files."""
        return [*self._files, *([MANIFEST] if self.artifact.manifest_sha256 else [])]

    def check(self) -> None:
        """Refusal (410) when a file is gone or has another size, or the manifest is another one; contents are not hashed.

        A bucket is not asked, which takes time: who needs the files fetches them, and verifies all of them.
        """
        if self.store.is_remote:
            return
        for name in self.names():
            file = self._checked(name)
        content = b"".join(self.store.chunks(self.artifact, MANIFEST, file.num_bytes))
        if hashlib.sha256(content).hexdigest() != self.artifact.manifest_sha256:
            raise self._damaged(MANIFEST, "is not the one that was committed")

    def file(self, name: str, request_headers: Mapping[str, str]) -> Response:
        """The response that sends a file, or the one part of it that Range asks for; its ETag is its sha256.

        Starlette answers several ranges with as many parts, and nonsense without a problem: neither reaches it.
        """
        file = self._checked(name)
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
        if isinstance(self.store, S3Store):
            # Its own server sends it; the address holds for minutes, so nobody may keep this answer.
            with _refused():
                address = self.store.link(self.artifact, name, saved_as)
            return Response(status_code=302, headers={**headers, "Location": address, "Cache-Control": "no-store"})
        kind = FileResponse if is_range else _WholeFile
        path = self.store.path_of(self.artifact, name)
        return kind(path, headers=headers, media_type="application/octet-stream", filename=saved_as)

    def archive(self) -> Response:
        """The response that streams the whole folder as an uncompressed tar."""
        members = [self._checked(name) for name in self.names()]
        headers = [self._member(file).tobuf(tarfile.PAX_FORMAT) for file in members]
        num_bytes = sum(len(header) + _padded(file.num_bytes) for header, file in zip(headers, members, strict=True))
        return StreamingResponse(
            self._tar(members, headers),
            media_type="application/x-tar",
            headers={
                "Content-Length": str(num_bytes + 2 * tarfile.BLOCKSIZE),
                "Content-Disposition": f'attachment; filename="{self._title()}.tar"',
                "Cache-Control": "private, no-cache",
            },
        )

    def _checked(self, name: str) -> ManifestFile:
        """What is known of a listed file; Refusal (404, 410) when there is none, or another one."""
        if name not in self.names() or not _NAME.fullmatch(name):
            raise Refusal(404, f"The {self._words.noun} has no file {name[:200]!r}; see its list of files.")
        file = self._files.get(name)
        try:
            with _refused():
                num_bytes = self.store.size(self.artifact, name)
        except OutOfPlace:
            raise Refusal(
                404, f"There is no file {name[:200]!r} here; see the {self._words.noun}'s list of files."
            ) from None
        except Unreadable as error:
            raise self._damaged(name, str(error)) from None
        if file is None:
            return ManifestFile(name=name, num_bytes=num_bytes, sha256=self.artifact.manifest_sha256)
        if num_bytes != file.num_bytes:
            raise self._damaged(name, f"has {num_bytes} bytes instead of {file.num_bytes}")
        return file

    def _tar(self, members: list[ManifestFile], headers: list[bytes]) -> Iterator[bytes]:
        for file, header in zip(members, headers, strict=True):
            yield header
            # Too late for a problem when it fails: a connection that breaks is how the reader learns of it.
            yield from self.store.chunks(self.artifact, file.name, file.num_bytes)
            yield bytes(_padded(file.num_bytes) - file.num_bytes)
        yield bytes(2 * tarfile.BLOCKSIZE)

    def _damaged(self, name: str, what: str) -> Refusal:
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


def stored_checkpoint(checkpoint: Checkpoint, location: CheckpointFolder, store: ArtifactStore) -> StoredFolder:
    """A checkpoint's folder: what its manifest names, and the manifest."""
    artifact = Artifact(checkpoint.run_id, location.fence, location.path, checkpoint.manifest_sha256)
    words = FolderWords(
        "checkpoint", checkpoint.id, checkpoint.run_name, checkpoint.step, "take another checkpoint of this run."
    )
    return StoredFolder(store, artifact, checkpoint.files, checkpoint.created_at, words)


def stored_export(export: Export, location: str, store: ArtifactStore) -> StoredFolder:
    """The files of an export, by its folder in the store of exports."""
    assert export.result is not None, "what has files has a result"
    words = FolderWords("export", export.id, export.run_name, export.step, "export the checkpoint again.")
    made_at = export.finished_at or export.created_at
    return StoredFolder(store, ExportedFiles(location), export.result.files, made_at, words)


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


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


@contextmanager
def _refused() -> Iterator[None]:
    """A store that fails in the block is a Refusal."""
    try:
        yield
    except StoreProblem as problem:
        raise Refusal(503, str(problem), headers={"Retry-After": "5"}) from None
