"""Whether the database has the schema that this worker works with, asked before each claim: both may be upgraded apart.

Alembic knows too, but it would take the pool's children, which do nothing but wait, past their limit of memory.
"""

from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

import backend

_REVISIONS = Path(backend.__file__).parent / "migrations" / "versions"
NEWEST_REVISION = max(path.name for path in _REVISIONS.glob("[0-9]*.py"))[:4]
"""Each migration's file begins with its revision."""


class OtherSchema(RuntimeError):
    """The database is of another version of Incipit; the message says what to do."""


def refuse_other_schema(session: Session) -> None:
    """Raises OtherSchema unless the database has the newest schema."""
    try:
        current = session.scalar(text("SELECT version_num FROM alembic_version"))
    except (OperationalError, ProgrammingError) as error:
        if "alembic_version" not in str(error.orig):
            raise
        current = None
    if current != NEWEST_REVISION:
        raise OtherSchema(
            f"The database has schema {current or 'none'} but this worker needs {NEWEST_REVISION} and claims nothing; run "
            "`python -m backend.migrate`, or install the version of Incipit that made it."
        )
