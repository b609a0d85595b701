"""API keys: made, listed, revoked, and looked up at every request that carries one."""

from datetime import timedelta

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.orm import Session

from backend.access import ApiKey, CreatedKey, KeyCreate, Principal
from backend.access_records import ApiKey as KeyRow
from backend.database import now_of
from backend.key_format import KeyText, new_key

_USE_IS_NOTED_EVERY = timedelta(minutes=1)


def create_key(session: Session, wanted: KeyCreate, *, created_by: str) -> CreatedKey:
    """Store a fresh key; what is returned is the only copy of its secret."""
    key, now = new_key(), now_of(session)
    row = KeyRow(
        id=key.id,
        name=wanted.name,
        secret_sha256=key.secret_sha256,
        role=wanted.role,
        project_id=wanted.project_id,
        created_by=created_by,
        created_at=now,
        expires_at=None if wanted.valid_days is None else now + timedelta(days=wanted.valid_days),
    )
    session.add(row)
    session.flush()
    return CreatedKey(**_record(row).model_dump(), key=key.text)


def keys(session: Session) -> list[ApiKey]:
    """All keys, the newest first."""
    return [_record(row) for row in session.scalars(select(KeyRow).order_by(KeyRow.created_at.desc(), KeyRow.id))]


def has_valid_key(session: Session) -> bool:
    """Whether anybody could sign in with a key now."""
    return session.scalar(select(KeyRow.id).where(*_is_valid(session)).limit(1)) is not None


def revoke_key(session: Session, id: str) -> ApiKey | None:
    """Make a key invalid for good; None when there is none of this id."""
    session.execute(
        update(KeyRow)
        .where(KeyRow.id == id, KeyRow.revoked_at.is_(None))
        .values(revoked_at=now_of(session))
        .execution_options(synchronize_session=False)
    )
    row = session.scalars(select(KeyRow).where(KeyRow.id == id)).one_or_none()
    return None if row is None else _record(row)


def holder_of(session: Session, key: KeyText) -> tuple[Principal, bool] | None:
    """Who holds a valid key, and whether its use shall be noted; None for every other key."""
    row = session.scalars(select(KeyRow).where(KeyRow.id == key.id, *_is_valid(session))).one_or_none()
    # Compared with something also when there is no such key, so that the answer takes as long.
    if not key.is_of(row.secret_sha256 if row else "0" * 64) or row is None:
        return None
    is_to_note = row.last_used_at is None or row.last_used_at < now_of(session) - _USE_IS_NOTED_EVERY
    return Principal(id=f"key:{row.id}", role=row.role, project_id=row.project_id), is_to_note


def note_use(session: Session, id: str) -> None:
    """Store that a key was used now, unless that was stored within the last minute."""
    now = now_of(session)
    is_long_ago = or_(KeyRow.last_used_at.is_(None), KeyRow.last_used_at < now - _USE_IS_NOTED_EVERY)
    session.execute(
        update(KeyRow)
        .where(KeyRow.id == id, is_long_ago)
        .values(last_used_at=now)
        .execution_options(synchronize_session=False)
    )


def _is_valid(session: Session) -> tuple[ColumnElement[bool], ...]:
    return KeyRow.revoked_at.is_(None), or_(KeyRow.expires_at.is_(None), KeyRow.expires_at > now_of(session))


def _record(row: KeyRow) -> ApiKey:
    return ApiKey.model_validate({name: getattr(row, name) for name in ApiKey.model_fields})
