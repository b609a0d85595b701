"""Drops the checkpoints of a supervised run that nobody wants any more: the engine does not know which are pinned."""

import logging
import shutil
from pathlib import Path

from backend.database import Database
from backend.queries.claims import Claim
from backend.queries.retention import drop_checkpoints
from worker.lease import DATABASE_OUTAGES

_log = logging.getLogger(__name__)


def drop_unkept(database: Database, claim: Claim, run_folder: Path) -> None:
    """Remove what the spec does not keep; first the rows, so that no reader is led to a folder that is half gone.

    What a crash leaves in between is a folder without a row, which worker/garbage.py removes. Raises LeaseLost.
    """
    try:
        with database.write() as session:
            gone = drop_checkpoints(session, claim)
    except DATABASE_OUTAGES as error:
        _log.warning("Old checkpoints of run %s stay until the next one is saved: %s", claim.run_id, error)
        return
    for one in gone:
        shutil.rmtree(run_folder / "attempts" / str(one.attempt) / one.path, ignore_errors=True)
