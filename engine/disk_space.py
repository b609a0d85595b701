"""Whether there is room for a checkpoint, asked before it is begun: a full disk would also stop journal and database."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from engine.student import Student

# Over the last checkpoint's size: states grow a little, and so does what others write meanwhile.
HEADROOM = 1.2
# Left for journals, token traces, the database and its log, whatever the model's size.
RESERVE_BYTES = 256 * 1024**2
MAX_REFUSALS = 3
"""Checkpoints in a row that may be left out; the run ends at the last of them."""
ADVICE = "Free some, lower checkpoints.keep_last, or move INCIPIT_HOME to a larger disk."
_FLOAT32_BYTES = 4
_NUM_MOMENTS = 2


@dataclass(frozen=True)
class Shortage:
    """A checkpoint that there is no room for."""

    message: str
    """One sentence with the figures."""
    free_bytes: int
    needed_bytes: int


def shortage(folder: Path, num_bytes: int) -> Shortage | None:
    """What is missing on the disk of a folder for a checkpoint of about so many bytes; None when there is room."""
    free, needed = shutil.disk_usage(folder).free, int(HEADROOM * num_bytes) + RESERVE_BYTES
    if free >= needed:
        return None
    message = (
        f"{mebibytes(free)} are free on the disk of {folder} but a checkpoint needs {mebibytes(needed)} "
        f"({HEADROOM} times its {mebibytes(num_bytes)}, and {mebibytes(RESERVE_BYTES)} in reserve)"
    )
    return Shortage(message, free, needed)


def estimated_bytes(student: Student) -> int:
    """About the size of a checkpoint before one was written: float32 weights and moments, those of an adapter apart."""
    adapter = 0 if student.model.adapter is None else student.num_trained_parameters
    return _FLOAT32_BYTES * (student.model.num_parameters + adapter + _NUM_MOMENTS * student.num_trained_parameters)


def mebibytes(num_bytes: int) -> str:
    """Bytes as `1,234 MiB` or `1.3 MiB`."""
    value = num_bytes / 1024**2
    return f"{value:,.0f} MiB" if value >= 10 else f"{value:.1f} MiB"
