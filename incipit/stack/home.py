"""The home folder of a local installation: made private, checked for room and for a disk that SQLite can use."""

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import psutil

from incipit.stack.errors import StackError

# A run of the tiny pair needs about 100 MiB; below this, the first checkpoint is likely to fail.
MIN_FREE_BYTES = 512 * 1024**2

_NETWORK_FILESYSTEMS = frozenset(
    ("9p", "afs", "beegfs", "ceph", "cifs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs")
)


def opened_home(home: Path, *, needs_local_disk: bool, min_free_bytes: int = MIN_FREE_BYTES) -> Path:
    """The folder, made if need be, with its `logs` folder.

    Raises StackError when it cannot be written, is short of space, or lies on a network file system although SQLite
    (`needs_local_disk`) is to keep its database there.
    """
    home = home.expanduser().absolute()
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        (home / "logs").mkdir(exist_ok=True, mode=0o700)
        probe = home / f".write-probe-{os.getpid()}"
        probe.write_bytes(b"incipit")
        probe.unlink()
    except OSError as error:
        raise StackError(_refusal(home, error)) from None
    free = shutil.disk_usage(home).free
    if free < min_free_bytes:
        raise StackError(
            f"The disk of {home} has {_mib(free)} MiB free but Incipit needs at least {_mib(min_free_bytes)} MiB; "
            "make room or choose another folder with --home."
        )
    filesystem = filesystem_of(home, ((part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)))
    if needs_local_disk and filesystem in _NETWORK_FILESYSTEMS:
        raise StackError(
            f"{home} lies on a network file system ({filesystem}), where SQLite's write-ahead log gets corrupted; "
            "choose a folder on a local disk with --home, or set INCIPIT_DATABASE_URL to a PostgreSQL database."
        )
    return home


def filesystem_of(path: Path, mounts: Iterable[tuple[str, str]]) -> str:
    """Type of the file system that holds `path`, given (mount point, type) pairs; empty when none matches."""
    resolved = path.resolve()
    holders = [(point, kind) for point, kind in mounts if resolved.is_relative_to(point)]
    # The later of two mounts on the same point hides the earlier one.
    return max(enumerate(holders), key=lambda pair: (len(pair[1][0]), pair[0]))[1][1] if holders else ""


def _refusal(home: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"There is no space left on the disk of {home}; make room or choose another folder with --home."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{home} cannot be written ({error.strerror}); change its permissions or choose another with --home."
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{home} is not a folder; choose another with --home."
    return f"{home} cannot be used ({error.strerror}); choose another folder with --home."


def _mib(num_bytes: int) -> int:
    return num_bytes // 1024**2
