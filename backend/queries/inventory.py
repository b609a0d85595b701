"""What a database holds, in numbers: a copy of it must hold the same."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import func, select, table
from sqlalchemy.orm import Session

from backend.records import Checkpoint
from backend.tables import Run, Table


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint that is to be on the disk, by its folder below that of all runs."""

    path: str
    manifest_sha256: str


@dataclass(frozen=True)
class Inventory:
    """The rows of each table, and what of the disk they speak of."""

    num_rows: dict[str, int]
    fences: dict[str, int]
    """By run the last attempt that the database knows."""
    checkpoints: list[KeptCheckpoint]


def inventory(session: Session) -> Inventory:
    """Counted in the session's transaction."""
    kept = select(Checkpoint).where(Checkpoint.removed_at.is_(None)).order_by(Checkpoint.id)
    return Inventory(
        num_rows=num_rows(session, [table.name for table in Table.metadata.sorted_tables]),
        fences={row.id: row.fence for row in session.execute(select(Run.id, Run.fence))},
        checkpoints=[
            KeptCheckpoint(f"{row.run_id}/attempts/{row.fence}/{row.path}", row.manifest_sha256)
            for row in session.scalars(kept)
        ],
    )


def num_rows(session: Session, names: Iterable[str]) -> dict[str, int]:
    """Rows of tables by name: a database of another version has other ones."""
    return {name: session.scalar(select(func.count()).select_from(table(name))) or 0 for name in names}
