"""A backup becomes an installation again: checked before, put into an empty place, and checked again there."""

from pathlib import Path

from pydantic import ValidationError

from backend import migrate
from engine.manifest import Expected, damage_of
from incipit.backup.database_copy import counted, kind_of, loaded, refuse_tables
from incipit.backup.manifest import FILES, KEPT, MANIFEST, BackupError, BackupManifest, copied, sha256_of


def checked_backup(folder: Path) -> BackupManifest:
    """The manifest of a backup all of whose files are what it says; raises BackupError."""
    try:
        manifest = BackupManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise BackupError(f"{folder} has no {MANIFEST} and is no complete backup; name another folder.") from None
    except (OSError, ValidationError):
        raise BackupError(
            f"{folder / MANIFEST} is none that this version reads; use the version that made it."
        ) from None
    for file in manifest.files:
        path = folder / file.name
        if not path.is_file() or path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            raise BackupError(f"{path} is missing; use another backup.")
        if path.stat().st_size != file.num_bytes or sha256_of(path) != file.sha256:
            raise BackupError(f"{path} is not what was backed up; use another backup.")
    return manifest


def restore_backup(folder: Path, url: str, home: Path) -> BackupManifest:
    """Put a backup into an empty database and a home without runs; raises BackupError before anything is changed, or when what is
    there afterwards is not what the backup holds. An older schema is migrated to this version's.
    """
    manifest = checked_backup(folder)
    if manifest.database != kind_of(url):
        raise BackupError(
            f"The backup is of {manifest.database}, but INCIPIT_DATABASE_URL names {kind_of(url)}; name a database of the same kind."
        )
    if manifest.schema_revision > migrate.head():
        raise BackupError(
            f"The backup has schema {manifest.schema_revision} but this version knows {migrate.head()}; "
            f"install Incipit {manifest.version}."
        )
    there = [home / name for name in KEPT if (home / name).exists()]
    if there:
        raise BackupError(f"{there[0]} exists and is not overwritten; move it away, or set another INCIPIT_HOME.")
    refuse_tables(url)
    try:
        for file in manifest.files:
            if file.name.startswith(f"{FILES}/"):
                copied(folder / file.name, home / file.name.removeprefix(f"{FILES}/"))
    except OSError as error:
        raise BackupError(
            f"{home} cannot be written ({error.strerror}); make room, empty it and restore again."
        ) from error
    loaded(url, folder / "database")
    _verify(manifest, url, home)
    migrate.upgrade(url)
    return manifest


def _verify(manifest: BackupManifest, url: str, home: Path) -> None:
    found = counted(url, manifest.num_rows)
    for table, num_rows in manifest.num_rows.items():
        if found[table] != num_rows:
            raise BackupError(
                f"{table} has {found[table]} rows but the backup {num_rows}; empty all and restore again."
            )
    for path, sha256 in manifest.checkpoints.items():
        damage = damage_of(home / "runs" / path, Expected(manifest_sha256=sha256))
        if damage:
            raise BackupError(f"The checkpoint {path} is damaged: {damage}; empty all and restore again.")
