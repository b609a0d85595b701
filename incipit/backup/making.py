"""A backup of a running installation: first the database, then the files that it speaks of."""

import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from backend.queries.inventory import Inventory
from engine.manifest import Expected, damage_of
from incipit.backup.database_copy import dumped, kind_of
from incipit.backup.manifest import FILES, KEPT, MANIFEST, BackupError, BackupFile, BackupManifest, copied, sha256_of


def make_backup(url: str, home: Path, folder: Path, *, store_url: str = "") -> BackupManifest:
    """Write a backup into `folder`, which must not exist; raises BackupError, and leaves nothing half-made.

    Checkpoints and prompts never change once they are written, so files of a later moment fit a database of an earlier one: what was
    added since is left out, and what was removed since is named.
    Of an installation with a bucket (`store_url`) no checkpoint is copied: the bucket keeps them.
    """
    if folder.exists():
        raise BackupError(f"{folder} exists and is not overwritten; name another folder.")
    if folder.resolve().is_relative_to(home.resolve()):
        raise BackupError(f"{folder} lies in {home}, what is to be backed up; name a folder on another disk.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True, mode=0o700)
        manifest = _written(url, home, partial, store_url)
        (partial / MANIFEST).touch(mode=0o600)
        (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1))
        os.sync()
        partial.rename(folder)
    except OSError as error:
        raise BackupError(
            f"{folder} cannot be written ({error.strerror}); make room, or name another folder."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _written(url: str, home: Path, folder: Path, store_url: str) -> BackupManifest:
    database = folder / "database"
    revision, found = dumped(url, database)
    files = [BackupFile(name="database", num_bytes=database.stat().st_size, sha256=sha256_of(database))]
    for name in _names(home, found, [kept for kept in KEPT if kept != "runs" or not store_url]):
        target = folder / FILES / name
        try:
            num_bytes, sha256 = copied(home / name, target)
        except FileNotFoundError:  # removed meanwhile
            target.unlink(missing_ok=True)
            continue
        files.append(BackupFile(name=f"{FILES}/{name}", num_bytes=num_bytes, sha256=sha256))
    runs = folder / FILES / "runs"
    kept = [] if store_url else found.checkpoints
    damaged = {
        one.path for one in kept
        if damage_of(runs / one.path, Expected(manifest_sha256=one.manifest_sha256)) is not None
    }  # fmt: skip
    return BackupManifest(
        made_at=datetime.now(UTC),
        version=version("incipit"),
        schema_revision=revision,
        database="sqlite" if kind_of(url) == "sqlite" else "postgresql",
        num_rows=found.num_rows,
        checkpoints={one.path: one.manifest_sha256 for one in kept if one.path not in damaged},
        lost_checkpoints=sorted(damaged),
        store_url=store_url,
        files=files,
    )


def _names(home: Path, found: Inventory, names: Sequence[str]) -> Iterator[str]:
    """The files to copy, below the home; none of an attempt that the copied database does not know: it will make one of that number."""
    for kept in names:
        if (home / kept).is_file():
            yield kept
        for folder, folders, names in os.walk(home / kept):
            place = Path(folder).relative_to(home)
            # Names with a dot are drafts that are renamed when they are whole.
            folders[:] = sorted(name for name in folders if not name.startswith(".") and _is_known(place / name, found))
            for name in sorted(names):
                if (
                    not name.startswith(".")
                    and (home / place / name).is_file()
                    and not (home / place / name).is_symlink()
                ):
                    yield (place / name).as_posix()


def _is_known(folder: Path, found: Inventory) -> bool:
    match folder.parts:
        case ("runs", run_id, "attempts", attempt) if run_id in found.fences and attempt.isdecimal():
            return int(attempt) <= found.fences[run_id]
    return True
