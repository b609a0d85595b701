"""Where the checkpoints and token traces of runs are kept: in the folder that all machines share, or in a bucket.

Engines write on their machine's disk, below run_dir. Into a bucket their supervisor copies what is to stay, before it is recorded, and
whoever needs it elsewhere fetches it to the same place below its own run_dir. A checkpoint's keys name its run, its attempt and its
manifest, so that nothing that was ever recorded can be written over, least of all by an attempt that was given up.
"""

from pathlib import Path

from backend.folder_store import FolderStore
from backend.s3_bucket import S3Bucket
from backend.s3_store import S3Store
from backend.settings import Settings

ArtifactStore = FolderStore | S3Store


def artifact_store(settings: Settings) -> ArtifactStore:
    """The store of an installation. Nothing is asked of it yet."""
    if settings.store.is_s3:
        return S3Store(S3Bucket(settings.store), settings.run_dir)
    return FolderStore(settings.run_dir)


def export_store(store: ArtifactStore, folder: Path) -> ArtifactStore:
    """Where the files of exports are, beside what is in `store`: in the same bucket, or in their folder."""
    return S3Store(store.bucket, folder) if isinstance(store, S3Store) else FolderStore(folder)
