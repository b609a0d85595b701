"""Checkpoint files on their way out: single files with Range, whole folders as one tar, both in constant memory.

A bucket's own server sends single files: whoever asks is sent to an address that it takes for five minutes.
"""

import base64
import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from backend.artifact_store import ArtifactStore
from backend.artifacts import Artifact, OutOfPlace, Unreadable
from backend.problems import Refusal
from backend.queries.checkpoints import CheckpointFolder
from backend.s3_store import S3Store
from backend.schemas import Checkpoint, CheckpointFile
from backend.store_problem import StoreProblem
from engine.manifest import MANIFEST

_RANGE = re.compile(r"bytes=(?P<first>[0-9]{0,18})-(?P<last>[0-9]{0,18})", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9_][\w.\-]{0,127}(/[A-Za-z0-9_][\w.\-]{0,127}){0,5}", re.ASCII)


class StoredCheckpoint:
    """A checkpoint with its place in the store. Only what its manifest names can leave it. A store that fails is a Refusal (503)."""

    def __init__(self, checkpoint: Checkpoint, location: CheckpointFolder, store: ArtifactStore) -> None:
        self.checkpoint = checkpoint
        self.store = store
        self.artifact = Artifact(checkpoint.run_id, location.fence, location.path, checkpoint.manifest_sha256)

    @property
    def folder(self) -> Path:
        """Where it is on this machine's disk, or would be."""
        return self.store.local(self.artifact)

    def names(self) -> list[str]:
        """The manifest's files, and the manifest."""
        return [*(file.name for file in self.checkpoint.files), MANIFEST]

    def check(self) -> None:
        """Refusal (410) when a file is gone or has another size, or the manifest is another one; contents are not hashed.

        A bucket is not asked, which takes time: who needs the files fetches them, and verifies all of them.
        """
        if self.store.is_remote:
            return
        for name in self.names():
            file = self._checked(name)
        content = b"".join(self.store.chunks(self.artifact, MANIFEST, file.num_bytes))
        if hashlib.sha256(content).hexdigest() != self.checkpoint.manifest_sha256:
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

    def _checked(self, name: str) -> CheckpointFile:
        file = next((file for file in self.checkpoint.files if file.name == name), None)
        if (file is None and name != MANIFEST) or not _NAME.fullmatch(name):
            raise Refusal(404, f"The checkpoint has no file {name[:200]!r}; see its list of files.")
        try:
            with _refused():
                num_bytes = self.store.size(self.artifact, name)
        except OutOfPlace:
            raise Refusal(404, f"There is no file {name[:200]!r} here; see the checkpoint's list of files.") from None
        except Unreadable as error:
            raise self._damaged(name, str(error)) from None
        if file is None:
            return CheckpointFile(name=name, num_bytes=num_bytes, sha256=self.checkpoint.manifest_sha256)
        if num_bytes != file.num_bytes:
            raise self._damaged(name, f"has {num_bytes} bytes instead of {file.num_bytes}")
        return file

    def _tar(self, members: list[CheckpointFile], headers: list[bytes]) -> Iterator[bytes]:
        for file, header in zip(members, headers, strict=True):
            yield header
            # Too late for a problem when it fails: a connection that breaks is how the reader learns of it.
            yield from self.store.chunks(self.artifact, file.name, file.num_bytes)
            yield bytes(_padded(file.num_bytes) - file.num_bytes)
        yield bytes(2 * tarfile.BLOCKSIZE)

    def _damaged(self, name: str, what: str) -> Refusal:
        return Refusal(410, f"{name} of checkpoint {self.checkpoint.id} {what}; take another checkpoint of this run.")

    def _title(self) -> str:
        run_name = re.sub(r"[^A-Za-z0-9]+", "-", self.checkpoint.run_name).strip("-")[:60] or "run"
        return f"{run_name}-step-{self.checkpoint.step}"

    def _member(self, file: CheckpointFile) -> tarfile.TarInfo:
        member = tarfile.TarInfo(f"{self._title()}/{file.name}")
        member.size = file.num_bytes
        member.mode = 0o644
        member.mtime = int(self.checkpoint.created_at.timestamp())
        return member


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
