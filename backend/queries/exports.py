"""Exports of checkpoints: asked for, read, let go. How they are claimed and made is in backend/queries/analyses.py."""

from dataclasses import dataclass

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from backend.access import Principal
from backend.database import now_of
from backend.exports import EXPORT, Export, QueuedExport
from backend.limits import Limits
from backend.problems import Refusal
from backend.queries.analyses import cancel, eta_seconds, queue_position, queued
from backend.queries.runs import hold_queue_of
from backend.tables import Analysis as Row
from engine.export_spec import ExportResult

_IS_EXPORT = Row.kind == EXPORT
# A push to a hub has succeeded as well and keeps no files here.
_HAS_FILES = (
    _IS_EXPORT,
    Row.state == "succeeded",
    Row.removed_at.is_(None),
    Row.result["is_kept"].as_boolean(),
)


def create_export(session: Session, wanted: QueuedExport, *, owner: Principal, limits: Limits) -> Export:
    """Queue an export; Refusal (409) when its owner has too many there. The files of the oldest beyond what is kept are let go."""
    hold_queue_of(session, owner.id)
    mine = (_IS_EXPORT, Row.state == "queued", Row.created_by == owner.id)
    waiting = session.scalar(select(func.count()).select_from(Row).where(*mine)) or 0
    if waiting >= limits.exports_queued:
        raise Refusal(
            409,
            f"You have {waiting} exports in the queue, and at most {limits.exports_queued} may wait; wait until one is made, or "
            "cancel some.",
        )
    ids = {"id": wanted.spec.id, "run_id": wanted.run_id, "checkpoint_id": wanted.asked.checkpoint_id}
    row = queued(session, wanted, EXPORT, owner, **ids)
    _let_oldest_go(session, row.project_id, limits.exports_kept)
    return _record(session, row)


def export(session: Session, id: str) -> Export | None:
    """One export."""
    row = _row(session, id)
    return None if row is None else _record(session, row)


def exports(session: Session, *, checkpoint_id: str | None, limit: int) -> list[Export]:
    """The last exports of all checkpoints or of one, newest first."""
    query = select(Row).where(_IS_EXPORT).order_by(Row.id.desc()).limit(limit)
    if checkpoint_id is not None:
        query = query.where(Row.checkpoint_id == checkpoint_id)
    return [_record(session, row) for row in session.scalars(query)]


def export_folder(session: Session, id: str) -> tuple[Export, str] | None:
    """An export with the folder of its files, relative to that of all exports; None unless it has some."""
    row = session.scalars(select(Row).where(Row.id == id, *_HAS_FILES)).one_or_none()
    if row is None or not isinstance(row.result, ExportResult) or not row.result.is_kept:
        return None
    return _record(session, row), folder_of(row.id, row.fence)


def folder_of(id: str, fence: int) -> str:
    """Where the worker with this claim puts what it makes, relative to the folder of all exports."""
    return f"{id}/{fence}"


def cancel_export(session: Session, id: str) -> None:
    """End an export that waits or is at work; its worker notices at its next report and removes what it has written."""
    cancel(session, id, _IS_EXPORT)


def remove_export(session: Session, id: str) -> None:
    """Let the files of an export go; what it was stays in the list."""
    session.execute(
        update(Row)
        .where(Row.id == id, *_HAS_FILES)
        .values(removed_at=now_of(session))
        .execution_options(synchronize_session=False)
    )


@dataclass(frozen=True)
class ExportFolder:
    """What the database says of an export's folder."""

    needed: str | None
    """The one folder in it that must stay, by its name: that of the claim that made it, or is at it."""
    is_let_go: bool
    """Whether people have let its files go, so that they need not age first."""


def export_folders(session: Session, ids: list[str]) -> dict[str, ExportFolder]:
    """The folders of those ids that are exports."""
    query = select(Row.id, Row.fence, Row.state, Row.removed_at).where(_IS_EXPORT, Row.id.in_(ids))
    return {
        id: ExportFolder(
            needed=str(fence) if state in ("running", "succeeded") and removed_at is None else None,
            is_let_go=removed_at is not None,
        )
        for id, fence, state, removed_at in session.execute(query)
    }


def _let_oldest_go(session: Session, project_id: str, kept: int) -> None:
    of_project = (*_HAS_FILES, Row.project_id == project_id)
    newest = select(Row.id).where(*of_project).order_by(Row.id.desc()).limit(kept)
    gone = update(Row).where(*of_project, Row.id.not_in(newest)).values(removed_at=now_of(session))
    session.execute(gone.execution_options(synchronize_session=False))


def _row(session: Session, id: str) -> Row | None:
    return session.scalars(select(Row).where(Row.id == id, _IS_EXPORT)).one_or_none()


def _record(session: Session, row: Row) -> Export:
    wanted = row.spec
    assert isinstance(wanted, QueuedExport), "its kind says so"
    derived = {
        "run_id": wanted.run_id,
        "run_name": wanted.spec.card.run_name,
        "step": wanted.spec.card.step,
        "export": wanted.asked.export,
        "queue_position": queue_position(session, row),
        "eta_seconds": eta_seconds(row),
    }
    values = {name: getattr(row, name) for name in Export.model_fields if name not in derived}
    return Export.model_validate({**values, **derived})
