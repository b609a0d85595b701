"""Committed checkpoints that still exist."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import Row, Select, select
from sqlalchemy.orm import Session

from backend.records import Checkpoint as CheckpointRow
from backend.schemas import Checkpoint, CheckpointFile
from backend.tables import Experiment as ExperimentRow
from backend.tables import Run as RunRow


class CheckpointFolder(NamedTuple):
    """Where a checkpoint lies: a folder in the attempt's folder."""

    fence: int
    path: str


_CHECKPOINTS: Select[*tuple[Any, ...]] = (
    select(CheckpointRow, RunRow.name, ExperimentRow.name)
    .join(RunRow, RunRow.id == CheckpointRow.run_id)
    .join(ExperimentRow, ExperimentRow.id == RunRow.experiment_id)
    .where(CheckpointRow.removed_at.is_(None))
    .order_by(CheckpointRow.id.desc())
)


def checkpoints(session: Session, *, run_id: str | None, before: str | None, limit: int) -> list[Checkpoint]:
    """Checkpoints, newest first, of one run or of all, those behind id `before`."""
    query = _CHECKPOINTS.limit(limit)
    if run_id is not None:
        query = query.where(CheckpointRow.run_id == run_id)
    if before is not None:
        query = query.where(CheckpointRow.id < before)
    return _records(session.execute(query))


def checkpoint(session: Session, id: str) -> tuple[Checkpoint, CheckpointFolder] | None:
    """One checkpoint, and where it lies."""
    row = session.execute(_CHECKPOINTS.where(CheckpointRow.id == id)).one_or_none()
    if row is None:
        return None
    return _records([row])[0], CheckpointFolder(row[0].fence, row[0].path)


def _records(rows: Iterable[Row[*tuple[Any, ...]]]) -> list[Checkpoint]:
    return [
        Checkpoint(
            id=row.id,
            run_id=row.run_id,
            run_name=run_name,
            experiment_name=experiment_name,
            step=row.step,
            num_bytes=row.num_bytes,
            manifest_sha256=row.manifest_sha256,
            accuracy=row.accuracy,
            is_best=row.is_best,
            pinned=row.pinned,
            created_at=row.created_at,
            files=[CheckpointFile.model_validate(file) for file in row.files],
        )
        for row, run_name, experiment_name in rows
    ]
