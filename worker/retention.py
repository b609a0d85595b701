"""Drops the checkpoints of a supervised run that nobody wants any more: the engine does not know which are pinned."""

import logging

from backend.artifact_store import ArtifactStore
from backend.artifacts import Artifact
from backend.database import Database
from backend.queries.claims import Claim
from backend.queries.retention import drop_checkpoints
from backend.store_problem import StoreProblem
from worker.lease import DATABASE_OUTAGES

_log = logging.getLogger(__name__)


def drop_unkept(database: Database, claim: Claim, store: ArtifactStore) -> None:
    """Remove what the spec does not keep; first the rows, so that no reader is led to a folder that is half gone.

    What a crash leaves in between is a folder without a row, which worker/garbage.py or worker/store_garbage.py removes. Raises LeaseLost.
    """
    try:
        with database.write() as session:
            gone = drop_checkpoints(session, claim)
    except DATABASE_OUTAGES as error:
        _log.warning("Old checkpoints of run %s stay until the next one is saved: %s", claim.run_id, error)
        return
    for one in gone:
        try:
            store.remove(Artifact(claim.run_id, one.attempt, one.path, one.manifest_sha256))
        except StoreProblem as problem:
            _log.warning(
                "The checkpoint of step %s of run %s waits for the garbage collector: %s",
                one.step,
                claim.run_id,
                problem,
            )
            return  # of the others it would say the same, each time after a while
