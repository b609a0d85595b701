"""What works and what does not, for /readyz, /version and `incipit doctor`."""

import shutil
import sqlite3
from importlib.metadata import version as installed_version

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from backend.database import Database
from backend.doorbell import Doorbell
from backend.installation import Version
from backend.migrate import head
from backend.queries.workers import clock_warnings, num_present
from backend.schemas import Health
from backend.settings import Settings
from backend.store_watch import StoreState
from engine.events import EVENT_VERSION
from engine.spec import SPEC_VERSION

_MIN_FREE_BYTES = 2 * 1024**3
# sqlite.org/wal.html#walresetbug
_FIRST_SOUND_SQLITE = (3, 51, 3)


def version() -> Version:
    """What is installed."""
    return Version(
        version=installed_version("incipit"),
        spec_version=SPEC_VERSION,
        event_version=EVENT_VERSION,
        schema_revision=head(),
    )


def health(database: Database, doorbell: Doorbell, settings: Settings, store: StoreState) -> Health:
    """Database, broker, store, workers and what a person should know."""
    is_broker_up = doorbell.is_broker_up()
    warnings = _warnings(database, settings)
    if not is_broker_up:
        warnings.append("The broker does not answer: runs can be submitted, and start when it is back.")
    if store == "down":
        warnings.append(
            "The store of checkpoints does not work: new ones wait on their workers, and downloads fail; the API's log and "
            "`incipit doctor` say why."
        )
    try:
        name, workers, of_clocks = _ask(database)
        warnings += of_clocks
    except SQLAlchemyError:
        name, workers = "down", 0
        warnings.append("The database does not answer: nothing can be read or submitted.")
    return Health(
        status="ok" if is_broker_up and "down" not in (name, store) else "degraded",
        database=name,
        broker="up" if is_broker_up else "down",
        store=store,
        workers=workers,
        version=installed_version("incipit"),
        warnings=warnings,
    )


def _ask(database: Database) -> tuple[str, int, list[str]]:
    with database.read() as session:
        if database.is_sqlite:
            session.execute(text("SELECT 1"))
            name = f"sqlite {sqlite3.sqlite_version}"
        else:
            name = f"postgresql {str(session.scalar(text('SHOW server_version'))).split()[0]}"
        return name, num_present(session), clock_warnings(session)


def _warnings(database: Database, settings: Settings) -> list[str]:
    warnings = []
    if database.is_sqlite and sqlite3.sqlite_version_info < _FIRST_SOUND_SQLITE:
        warnings.append(
            f"SQLite {sqlite3.sqlite_version} has a rare fault with several writers (fixed in 3.51.3): Incipit "
            "avoids it, but keep backups, or use PostgreSQL."
        )
    free = shutil.disk_usage(settings.home).free
    if free < _MIN_FREE_BYTES:
        warnings.append(f"Only {free / 1024**3:.1f} GiB are free below INCIPIT_HOME; checkpoints may not fit.")
    return warnings
