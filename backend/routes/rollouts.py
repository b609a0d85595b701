"""A traced rollout with its tokens."""

import pyarrow
from pydantic import ValidationError

from backend.artifacts import Artifact
from backend.dependencies import Artifacts, Id, Reading, errors
from backend.locked_route import locked_router
from backend.problems import Refusal, not_found
from backend.queries import rollouts as queries
from backend.schemas import RolloutDetail
from backend.store_problem import StoreProblem
from engine.token_trace import read_trace

router = locked_router(prefix="/rollouts", tags=["rollouts"])


@router.get("/{rollout_id}", operation_id="get_rollout", responses=errors(404, 410))
def get_rollout(rollout_id: Id, session: Reading, store: Artifacts) -> RolloutDetail:
    """One rollout with what both models thought of each of its tokens."""
    found = queries.rollout(session, rollout_id)
    if found is None:
        raise not_found("rollout", rollout_id)
    rollout, where = found
    try:
        with store.opened(Artifact(rollout.run_id, where.fence, where.path)) as file:
            trace = read_trace(file, where.row)
    except StoreProblem as problem:
        raise Refusal(503, str(problem), headers={"Retry-After": "5"}) from None
    except (OSError, IndexError, pyarrow.ArrowException, ValidationError):
        raise Refusal(
            410, f"The trace file of rollout {rollout_id} is gone or damaged; look at another step."
        ) from None
    p99 = queries.p99_reverse_kl(session, rollout.run_id)
    start = queries.trained_start(session, rollout)
    return RolloutDetail(**rollout.model_dump(), trained_start=start, trace=trace, run_p99_reverse_kl=p99)
