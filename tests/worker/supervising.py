"""A queued run worked on to its end, in this process."""

from backend.records import Attempt
from engine.spec import RunSpec
from tests.worker.runs import claim, queue_runs
from worker.slots import Slot
from worker.supervisor import Supervisor
from worker.workplace import Workplace


def supervise(place: Workplace, spec: RunSpec | None = None) -> Attempt:
    """Queue a run, or take the one that is queued, work on it without a GPU, and return its last attempt."""
    if spec is not None:
        queue_runs(place.database, spec)
    claimed = claim(place.database)
    Supervisor(claimed, Slot(0, None), place).work()
    with place.database.read() as session:
        return session.get_one(Attempt, (claimed.run_id, claimed.fence))
