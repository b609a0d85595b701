"""`python -m worker.health worker|control`: the health check of a container, by what the database has heard lately.

The exit status is 0 when it has, else 1 with one sentence. A check of the process itself would pass for one that hangs.
"""

import sys
from datetime import timedelta

from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from backend.database import Database, now_of
from backend.settings import Settings
from backend.tables import ControlLease, Worker
from worker.identity import HOST
from worker.lease import DATABASE_OUTAGES
from worker.settings import give_up, sentences_of

_WORKER_SILENT = timedelta(minutes=1)
"""A worker is heard of every ten seconds."""


def problem(session: Session, process: str) -> str | None:
    """What is wrong with this host's `worker`, or with whichever process is in `control`; None when nothing is."""
    now = now_of(session)
    if process == "worker":
        here = Worker.host == HOST
        heard = select(func.count()).select_from(Worker).where(here, Worker.heartbeat_at > now - _WORKER_SILENT)
        if not session.scalar(heard):
            return f"No worker of this host was heard of within {_WORKER_SILENT.total_seconds():.0f} s."
        return None
    in_control = select(func.count()).select_from(ControlLease).where(ControlLease.lease_until > now)
    return None if session.scalar(in_control) else "No process is in control."


def main() -> None:
    """Ask the database of INCIPIT_DATABASE_URL."""
    if sys.argv[1:] not in (["worker"], ["control"]):
        give_up(f"Health of {' '.join(sys.argv[1:])[:50]!r} is unknown; ask for `worker` or `control`.")
    try:
        database = Database(Settings().sql_url)
        with database.read() as session:
            found = problem(session, sys.argv[1])
    except ValidationError as error:
        give_up(*sentences_of(error))
    except DATABASE_OUTAGES:
        found = "The database does not answer."
    if found:
        print(found)
        sys.exit(1)


if __name__ == "__main__":
    main()
