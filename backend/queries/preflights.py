"""Preflights: asked for here, done by a worker."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.access import LOCAL, Principal
from backend.database import now_of
from backend.ids import new_id
from backend.schemas import Preflight
from backend.tables import Preflight as PreflightRow
from engine.spec import RunSpec


def create_preflight(session: Session, spec: RunSpec, *, owner: Principal = LOCAL) -> Preflight:
    """Queue the check of a spec."""
    row = PreflightRow(
        id=new_id(),
        project_id=owner.home_project,
        created_by=owner.id,
        created_at=now_of(session),
        spec=spec,
        state="queued",
        findings=[],
        facts={},
    )
    session.add(row)
    session.flush()
    return _record(row)


def preflight(session: Session, id: str) -> Preflight | None:
    """One preflight with what it has found."""
    row = session.get(PreflightRow, id)
    return None if row is None else _record(row)


def preflights(session: Session, *, limit: int) -> list[Preflight]:
    """The last preflights, newest first."""
    query = select(PreflightRow).order_by(PreflightRow.id.desc()).limit(limit)
    return [_record(row) for row in session.scalars(query)]


def _record(row: PreflightRow) -> Preflight:
    return Preflight.model_validate({name: getattr(row, name) for name in Preflight.model_fields})
