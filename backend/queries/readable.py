"""What waits in a queue and can be read: workers of an earlier version than the API's find specs that they do not know."""

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.tables import Analysis, Preflight


def oldest_readable(session: Session, table: type[Analysis] | type[Preflight], unreadable: set[str]) -> str | None:
    """The id of the oldest queued row whose spec this version can read, locked; None when there is none.

    The others stay in the queue for a worker that can, are added to `unreadable` and not looked at again.
    """
    while True:
        next_id = (
            select(table.id)
            .where(table.state == "queued", table.id.not_in(unreadable))
            .order_by(table.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        id = session.scalar(next_id)
        if id is None:
            return None
        try:
            session.scalar(select(table.spec).where(table.id == id))
        except ValidationError:
            unreadable.add(id)
            continue
        return id
