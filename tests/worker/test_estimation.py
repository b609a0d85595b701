"""The estimate is kept once in a run's history, before its first attempt, and never by a worker that has lost the run."""

import pytest

from backend.database import Database
from backend.estimates import Estimate
from backend.queries.claims import LeaseLost
from backend.queries.history import events
from engine.flops import FlopLedger
from tests.worker.runs import claim, queue_runs, set_columns, short_spec
from worker.estimation import keep_estimate


def estimates(database: Database, run_id: str) -> list[dict[str, object]]:
    with database.read() as session:
        return [one.payload for one in events(session, run_id, after_seq=0, limit=100, kinds=("estimated",)).items]


def test_the_estimate_is_kept_once(database: Database) -> None:
    queue_runs(database, short_spec())
    claimed = claim(database)
    keep_estimate(database, claimed)
    keep_estimate(database, claimed)
    (payload,) = estimates(database, claimed.run_id)
    flops = FlopLedger.model_validate(payload["flops"])
    assert 0 < flops.rollout_prefill < flops.rollout < flops.training
    assert set(payload) == set(Estimate.model_fields) - {"horizons", "longest_horizons", "horizon_steps"}


def test_a_model_that_cannot_be_estimated_leaves_no_trace(database: Database) -> None:
    queue_runs(database, short_spec(teacher={"path": "someone/model"}))
    claimed = claim(database)
    keep_estimate(database, claimed)
    assert estimates(database, claimed.run_id) == []


def test_a_lost_run_is_not_written_to(database: Database) -> None:
    queue_runs(database, short_spec())
    claimed = claim(database)
    set_columns(database, claimed.run_id, fence=claimed.fence + 1)
    with pytest.raises(LeaseLost):
        keep_estimate(database, claimed)
    assert estimates(database, claimed.run_id) == []
