"""Creating requests that carry an Idempotency-Key: what was answered, kept for a day."""

from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from backend.access_records import IdempotentRequest as RequestRow
from backend.database import now_of

KEPT = timedelta(hours=24)


class RequestName(NamedTuple):
    """A key is somebody's own, and for one operation."""

    principal_id: str
    operation: str
    key: str


class StoredAnswer(NamedTuple):
    """What a request was answered."""

    request_sha256: str
    body: str
    location: str


def begin(session: Session, name: RequestName, request_sha256: str) -> StoredAnswer | None:
    """The answer that was stored under this name, None when it is new: then it belongs to this transaction.

    Waits for another transaction that has begun the same name.
    """
    now = now_of(session)
    session.execute(delete(RequestRow).where(RequestRow.created_at < now - KEPT))
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    row = name._asdict() | {"request_sha256": request_sha256, "body": "", "location": "", "created_at": now}
    is_new = session.execute(
        dialect.insert(RequestRow).values(row).on_conflict_do_nothing().returning(RequestRow.key)
    ).one_or_none()
    if is_new is not None:
        return None
    stored = select(RequestRow.request_sha256, RequestRow.body, RequestRow.location).where(*_is(name))
    return StoredAnswer(*session.execute(stored).one())


def finish(session: Session, name: RequestName, *, body: str, location: str) -> None:
    """Store the answer in the transaction that makes what it tells of."""
    session.execute(
        update(RequestRow)
        .where(*_is(name))
        .values(body=body, location=location)
        .execution_options(synchronize_session=False)
    )


def _is(name: RequestName) -> tuple[ColumnElement[bool], ...]:
    return (
        RequestRow.principal_id == name.principal_id,
        RequestRow.operation == name.operation,
        RequestRow.key == name.key,
    )
