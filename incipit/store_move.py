"""Copies an installation's files from one store to another: from the folder into a bucket, back, or from bucket to bucket.

What is there already is not sent again, so that a move goes on where it was broken off, and a second one brings what came since. Nothing is
removed, and the database is only read: the move is done when the services are told of the new store.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from backend.artifacts import Artifact, StoredFile, Unreadable, upload_key
from backend.queries.stored import Stored
from backend.s3_bucket import S3Bucket
from backend.s3_store import S3Store
from backend.store_settings import StoreSettings
from engine.errors import is_out_of_space
from engine.manifest import MANIFEST, Expected, Manifest, damage_of
from engine.uploaded_prompts import file_sha256, upload_path

OnBytes = Callable[[int], None]


class CannotMove(Exception):
    """The two places are not such that files can be moved between them; the message says what to do."""


@dataclass
class Moved:
    """What became of a move."""

    num_copied: int = 0
    num_there: int = 0
    """Were there already, and whole."""
    num_bytes: int = 0
    """Copied."""
    lost: list[str] = field(default_factory=list)
    """What the old store does not have whole, each with why; it stays where it is."""


@dataclass(frozen=True)
class StoreMove:
    """From `source` to `target`: each a folder of runs, or `s3://bucket/prefix` with the server and keys of `settings`."""

    source: str
    target: str
    settings: StoreSettings

    def run(
        self, everything: Sequence[Stored], on_bytes: OnBytes, *, uploads: Sequence[str] = (), dry: bool = False
    ) -> Moved:
        """Copy what is missing; in a dry run only look. `on_bytes` is told of what is done.

        `uploads` are uploaded prompts by their sha256, which lie beside a folder of runs.

        Raises CannotMove, StoreProblem, and OSError when the disk is full.
        """
        moved = Moved()
        with self._work_folder() as folder:
            source, target = self._bucket(self.source, folder), self._bucket(self.target, folder)
            for store in (source, target):
                if store is not None:
                    store.check(writes=store is target and not dry)
            for one in everything:
                artifact, num_bytes = one.artifact, one.num_bytes
                if _is_there(one, folder, target):
                    moved.num_there += 1
                    on_bytes(num_bytes)
                elif dry:
                    moved.num_copied += 1
                    moved.num_bytes += num_bytes
                    on_bytes(num_bytes)
                else:
                    self._move(artifact, num_bytes, folder, source, target, moved, on_bytes)
                if source is not None and target is not None and not dry:
                    _discard(folder / artifact.name)
            for sha256 in uploads:
                self._move_upload(sha256, upload_path(folder.parent, sha256), source, target, moved, dry=dry)
        return moved

    def _move(
        self, artifact: Artifact, num_bytes: int, folder: Path, source: S3Store | None, target: S3Store | None, moved: Moved,
        on_bytes: OnBytes,
    ) -> None:  # fmt: skip
        sent = 0

        def on_chunk(num_sent: int) -> None:
            nonlocal sent
            sent += num_sent
            on_bytes(num_sent)

        files: list[StoredFile] = []
        try:
            wrong = source.fetch(artifact) if source is not None else None
            files = _files(artifact, folder) if wrong is None else []
            if wrong is None and target is not None:
                target.keep(artifact, files, on_chunk)
        except (Unreadable, OSError) as error:
            if is_out_of_space(error):
                raise
            wrong = str(error)
        on_bytes(max(0, num_bytes - sent))
        if wrong is not None:
            moved.lost.append(f"{artifact.name}: {wrong}")
            return
        moved.num_copied += 1
        moved.num_bytes += sum(file.num_bytes for file in files)

    def _move_upload(
        self, sha256: str, path: Path, source: S3Store | None, target: S3Store | None, moved: Moved, *, dry: bool
    ) -> None:
        key = upload_key(sha256)
        facts = None if target is None else target.bucket.facts(key)
        if (facts is not None and facts.sha256 == sha256) or (target is None and _is_file(path, sha256)):
            moved.num_there += 1
            return
        wrong = None if source is None or dry else source.fetch_file(key, path)
        if wrong is None and not dry and not _is_file(path, sha256):
            wrong = "it is not there, or not what was uploaded"
        if wrong is not None:
            moved.lost.append(f"{key}: {wrong}")
            return
        moved.num_copied += 1
        moved.num_bytes += path.stat().st_size if path.exists() else 0
        if target is not None and not dry:
            target.keep_file(key, path)

    @contextmanager
    def _work_folder(self) -> Iterator[Path]:
        """The folder of the two, or one for what passes between two buckets."""
        folders = [place for place in (self.source, self.target) if not place.startswith("s3://")]
        if len(folders) == 2:
            raise CannotMove(
                f"{self.source} and {self.target} are both folders; copy the first with `rsync -a`, then set INCIPIT_HOME to the new one."
            )
        if self.source == self.target:
            raise CannotMove(f"{self.source} is both the old and the new store; name two.")
        if folders:
            folder = Path(folders[0])
            if folders[0] == self.source and not folder.is_dir():
                raise CannotMove(
                    f"There is no folder {folders[0]}; name the one with a folder for each run, such as INCIPIT_HOME/runs."
                )
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="incipit-store-") as made:
            yield Path(made) / "runs"

    def _bucket(self, place: str, folder: Path) -> S3Store | None:
        if not place.startswith("s3://"):
            return None
        settings = self.settings.model_copy(update={"url": place})
        problem = settings.problem()
        if problem is not None:
            raise CannotMove(problem)
        return S3Store(S3Bucket(settings), folder)


def _is_there(one: Stored, folder: Path, target: S3Store | None) -> bool:
    """Whether the new store has all of it, as its sha256 say."""
    artifact = one.artifact
    if target is None and artifact.manifest_sha256:
        return damage_of(folder / artifact.name, Expected(manifest_sha256=artifact.manifest_sha256)) is None
    if target is None:
        return (folder / artifact.name).is_file()
    # The manifest first: it comes last into a bucket.
    manifest = target.bucket.facts(target.key(artifact, MANIFEST))
    if manifest is None or manifest.sha256 != (artifact.manifest_sha256 or manifest.sha256):
        return False
    return all(
        target.bucket.facts(target.key(artifact, file.name)) == (file.num_bytes, file.sha256) for file in one.files
    )


def _files(artifact: Artifact, folder: Path) -> list[StoredFile]:
    """What the folder has of it, whole. Raises Unreadable, OSError."""
    path = folder / artifact.name
    if not artifact.manifest_sha256:
        with path.open("rb") as file:
            return [StoredFile("", path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())]
    damage = damage_of(path, Expected(manifest_sha256=artifact.manifest_sha256))
    if damage is not None:
        raise Unreadable(damage)
    content = (path / MANIFEST).read_bytes()
    listed = [
        StoredFile(file.name, file.num_bytes, file.sha256) for file in Manifest.model_validate_json(content).files
    ]
    return [*listed, StoredFile(MANIFEST, len(content), artifact.manifest_sha256)]


def _is_file(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
