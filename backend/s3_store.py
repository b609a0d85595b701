"""A bucket as the place of runs' files, of which every machine has copies on its own disk."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from backend.artifacts import EXPORTS, Artifact, ExportedFiles, OutOfPlace, StoredFile, Unreadable
from backend.s3_bucket import ContentChanged, OnChunk, S3Bucket
from engine.manifest import MANIFEST, Expected, Manifest, damage_of
from engine.staging import put_in_place, staging_beside

_LINK_SECONDS = 300
_SPOOL_BYTES = 4 * 1024**2


def _nothing() -> None:
    pass


class S3Store:
    """Everything that is recorded is in a bucket; what is on this machine's disk are copies."""

    is_remote = True

    def __init__(self, bucket: S3Bucket, run_dir: Path) -> None:
        """`run_dir` is where the copies are: of exports, the folder of those."""
        self.bucket = bucket
        self.run_dir = run_dir

    @property
    def title(self) -> str:
        """What people call it."""
        return self.bucket.settings.url

    def check(self, *, writes: bool = False) -> None:
        """Raises StoreProblem, see S3Bucket.check."""
        self.bucket.check(writes=writes)

    def keep(self, artifact: Artifact | ExportedFiles, files: list[StoredFile], on_chunk: OnChunk) -> None:
        """Store what this machine's disk holds of it, in the order of `files`: a manifest comes last.

        What is there already is left. Raises StoreProblem, Unreadable when the disk does not hold what `files` say, and OSError.
        """
        for file in files:
            facts = self.bucket.facts(self.key(artifact, file.name))
            if facts is not None and facts == (file.num_bytes, file.sha256):
                continue
            try:
                self.bucket.put(
                    self.key(artifact, file.name),
                    self.local(artifact) / file.name,
                    sha256=file.sha256,
                    num_bytes=file.num_bytes,
                    on_chunk=on_chunk,
                )
            except (FileNotFoundError, NotADirectoryError, ContentChanged) as error:
                raise Unreadable(f"cannot be stored: {error}") from error

    def fetch(self, artifact: Artifact, on_chunk: Callable[[], None] = _nothing) -> str | None:
        """Make an artifact whole on this disk; what is wrong with the stored one, if anything is. Raises StoreProblem, OSError."""
        if not artifact.manifest_sha256:
            return self.fetch_file(artifact.name, self.local(artifact))
        folder = self.local(artifact)
        if folder.is_dir():
            os.utime(folder)  # it is wanted: copies that nobody has wanted for long go
        if damage_of(folder, Expected(manifest_sha256=artifact.manifest_sha256), on_chunk) is None:
            return None
        staging = staging_beside(folder)
        try:
            manifest = self._fetched_manifest(artifact, staging)
            for file in manifest.files:
                self._fetch_file(artifact, file.name, file.num_bytes, file.sha256, staging / file.name, on_chunk)
            put_in_place(staging, folder)
        except Unreadable as error:
            self.bucket.check(writes=False)  # of a bucket that is not there, every file seems to be missing
            return str(error)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return None

    def keep_file(self, key: str, path: Path) -> None:
        """Store a file that belongs to no checkpoint. Raises StoreProblem, OSError."""
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.bucket.put(key, path, sha256=sha256, num_bytes=path.stat().st_size)

    def fetch_file(self, key: str, path: Path) -> str | None:
        """Put such a file in its place; what is wrong with the stored one, if anything is. Raises StoreProblem, OSError."""
        draft = path.with_name(f".{path.name}-{os.getpid()}-{os.urandom(4).hex()}")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with self._opened(key) as stored, draft.open("xb") as file:
                shutil.copyfileobj(stored, file)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except FileNotFoundError:
            return f"it is not in {self.title}"
        finally:
            draft.unlink(missing_ok=True)
        return None

    def _fetched_manifest(self, artifact: Artifact, staging: Path) -> Manifest:
        path = staging / MANIFEST
        self._fetch_file(artifact, MANIFEST, self.size(artifact, MANIFEST), artifact.manifest_sha256, path, _nothing)
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except ValueError:
            raise Unreadable(f"its {MANIFEST} is not readable") from None

    def _fetch_file(
        self, artifact: Artifact, name: str, num_bytes: int, sha256: str, path: Path, on_chunk: Callable[[], None]
    ) -> None:
        if not path.resolve().is_relative_to(self.run_dir.resolve()):
            raise OutOfPlace(f"{name!r} lies outside it")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        digest = hashlib.sha256()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for chunk in self.chunks(artifact, name, num_bytes):
                file.write(chunk)
                digest.update(chunk)
                on_chunk()
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != sha256:
            raise Unreadable(f"{name} has another content in {self.title}")

    def remove(self, artifact: Artifact | ExportedFiles) -> None:
        """Remove a checkpoint from bucket and disk, its manifest last. Raises StoreProblem."""
        shutil.rmtree(self.local(artifact), ignore_errors=True)
        keys = [one.key for one in self.bucket.listed(self.key(artifact, ""))]
        for key in sorted(keys, key=lambda key: key.endswith(f"/{MANIFEST}")):
            self.bucket.remove(key)

    def local(self, artifact: Artifact | ExportedFiles) -> Path:
        """Its place on this machine's disk, where a copy may be."""
        return self.run_dir / artifact.name

    def key(self, artifact: Artifact | ExportedFiles, name: str) -> str:
        """Where in the bucket a file of it is."""
        if isinstance(artifact, ExportedFiles):
            return f"{EXPORTS}/{artifact.path}/{name}"
        if not artifact.manifest_sha256:
            return artifact.name
        return f"{artifact.name}/{artifact.manifest_sha256[:16]}/{name}"

    def size(self, artifact: Artifact | ExportedFiles, name: str) -> int:
        """Bytes of a file of a checkpoint. Raises Unreadable, StoreProblem."""
        facts = self.bucket.facts(self.key(artifact, name))
        if facts is None:
            raise Unreadable(f"is not in {self.title}")
        return facts.num_bytes

    def chunks(self, artifact: Artifact | ExportedFiles, name: str, num_bytes: int) -> Iterator[bytes]:
        """The first bytes of a file of a checkpoint, in pieces. Raises Unreadable, StoreProblem."""
        try:
            yield from self.bucket.chunks(self.key(artifact, name), num_bytes)
        except FileNotFoundError:
            raise Unreadable(f"{name} is not in {self.title}") from None

    def link(self, artifact: Artifact | ExportedFiles, name: str, saved_as: str) -> str:
        """An address of a file of a checkpoint that holds for five minutes. Raises StoreProblem."""
        return self.bucket.link(self.key(artifact, name), saved_as=saved_as, seconds=_LINK_SECONDS)

    @contextmanager
    def opened(self, artifact: Artifact) -> Iterator[BinaryIO]:
        """A file of traces, verified. Raises OSError when it is gone or damaged, and StoreProblem."""
        with self._opened(self.key(artifact, "")) as file:
            yield file

    @contextmanager
    def _opened(self, key: str) -> Iterator[BinaryIO]:
        with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as file:
            facts = self.bucket.facts(key)
            if facts is None:
                raise FileNotFoundError(key)
            digest = hashlib.sha256()
            for chunk in self.bucket.chunks(key, facts.num_bytes):
                file.write(chunk)
                digest.update(chunk)
            if facts.sha256 not in (None, digest.hexdigest()):
                raise OSError(f"{key} has another content in {self.title}")
            file.seek(0)
            yield file  # type: ignore[misc]  # it has what a binary file has
