"""The estimate of a run, kept in its history before its first attempt begins, so that it can be compared with what came."""

import logging

from backend.database import Database, now_of
from backend.estimate import estimate
from backend.problems import Refusal
from backend.queries.claims import Claim, hold
from backend.queries.history import events
from backend.queries.runs import training_rates
from backend.queries.transitions import add_event

_log = logging.getLogger(__name__)


def keep_estimate(database: Database, claim: Claim) -> None:
    """Add an `estimated` event to the run's history, unless an earlier attempt has done so or the models cannot be estimated.

    Its payload is backend.estimates.Estimate without the horizons, which the spec gives. Raises LeaseLost.
    """
    spec = claim.spec
    with database.read() as session:
        if events(session, claim.run_id, after_seq=0, limit=1, kinds=("estimated",)).items:
            return
        rates = training_rates(session, spec.student.path, spec.teacher.path)
    try:
        found = estimate(spec, rates)
    except Refusal as refusal:  # a model without a config.json here, for example of the hub: the engine fetches it
        _log.info("Run %s has no estimate: %s", claim.run_id, refusal)
        return
    payload = found.model_dump(mode="json", exclude={"horizons", "longest_horizons", "horizon_steps"})
    with database.write() as session:
        hold(session, claim.run_id, claim.fence)
        add_event(session, claim.run_id, "estimated", payload, fence=claim.fence, time=now_of(session))
