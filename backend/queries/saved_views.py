"""Views that people keep. The caller commits."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.access import Principal
from backend.database import now_of
from backend.ids import new_id
from backend.limits import Limits
from backend.problems import Refusal
from backend.saved_views import SavedView, SavedViewWrite, etag_of
from backend.tables import SavedView as ViewRow


def create_view(session: Session, wanted: SavedViewWrite, owner: Principal, limits: Limits) -> SavedView:
    """Store a view in its owner's project. Refuses (409) when the project has as many as it may."""
    project = owner.home_project
    stored = session.scalar(select(func.count()).select_from(ViewRow).where(ViewRow.project_id == project)) or 0
    if stored >= limits.saved_views:
        raise Refusal(
            409, f"The project has {stored} saved views, at most {limits.saved_views} are kept; remove some first."
        )
    now = now_of(session)
    row = ViewRow(
        id=new_id(), project_id=project, created_by=owner.id, created_at=now, updated_at=now, **wanted.model_dump()
    )
    session.add(row)
    session.flush()
    return _record(row)


def views(session: Session, *, limit: int) -> list[SavedView]:
    """The newest views."""
    return [_record(row) for row in session.scalars(select(ViewRow).order_by(ViewRow.id.desc()).limit(limit))]


def view(session: Session, id: str) -> SavedView | None:
    """One view."""
    row = _row(session, id)
    return None if row is None else _record(row)


def update_view(session: Session, id: str, wanted: SavedViewWrite, if_match: str | None) -> SavedView | None:
    """Replace name, note and address; None when there is no such view.

    Refuses without the ETag that was read (428), and when the view has another one by now (412).
    """
    row = session.scalars(select(ViewRow).where(ViewRow.id == id).with_for_update()).one_or_none()
    if row is None:
        return None
    if if_match is None:
        raise Refusal(428, "PUT needs the header If-Match with the view's ETag; read the view first.")
    etag = etag_of(_record(row))
    if if_match not in (etag, "*"):
        raise Refusal(412, f"The view was changed since: its ETag is {etag}, not {if_match[:50]}; read it again.")
    row.name, row.note, row.query, row.updated_at = wanted.name, wanted.note, wanted.query, now_of(session)
    session.flush()
    return _record(row)


def remove_view(session: Session, id: str) -> SavedView | None:
    """Remove a view; what it was, None when there is no such view."""
    row = _row(session, id)
    if row is None:
        return None
    session.delete(row)
    return _record(row)


def _row(session: Session, id: str) -> ViewRow | None:
    return session.scalars(select(ViewRow).where(ViewRow.id == id)).one_or_none()


def _record(row: ViewRow) -> SavedView:
    return SavedView.model_validate({name: getattr(row, name) for name in SavedView.model_fields})
