"""What the traced rollouts of a run say together: by position and step, by token type, and for the choice of a prefix."""

from typing import Annotated

from fastapi import Query

from backend.dependencies import Id, Reading, errors, page_size
from backend.divergence import (
    MAX_POSITION_BINS,
    MAX_STEP_BINS,
    DivergenceGrid,
    DivergentTokens,
    PositionBins,
    PositionQuantiles,
    PrefixAid,
    StepBins,
)
from backend.locked_route import locked_router
from backend.problems import not_found
from backend.queries import step_profiles as queries
from backend.queries.runs import exists
from engine.trace_profile import TraceMetric

router = locked_router(prefix="/runs/{run_id}", tags=["divergence"])

Step = Annotated[
    int | None, Query(ge=0, le=2**31 - 1, description="A traced step; see the answer for what it is if empty.")
]


@router.get("/divergence/grid", operation_id="get_divergence_grid", responses=errors(404))
def get_divergence_grid(
    run_id: Id,
    session: Reading,
    metric: TraceMetric = "reverse_kl",
    position_bins: Annotated[PositionBins, Query()] = MAX_POSITION_BINS,
    step_bins: Annotated[StepBins, Query()] = MAX_STEP_BINS,
) -> DivergenceGrid:
    """A quantity by completion position and step, with the number of rollouts behind each cell."""
    _require(session, run_id)
    return queries.divergence_grid(session, run_id, metric, position_bins=position_bins, step_bins=step_bins)


@router.get("/divergence/positions", operation_id="get_divergence_positions", responses=errors(404))
def get_divergence_positions(
    run_id: Id, session: Reading, step: Step = None, metric: TraceMetric = "reverse_kl"
) -> PositionQuantiles:
    """Mean, 10th, 50th and 90th percentile by completion position at a step, the newest traced one if empty."""
    _require(session, run_id)
    return queries.position_quantiles(session, run_id, metric, step=step)


@router.get("/divergence/tokens", operation_id="get_divergence_tokens", responses=errors(404))
def get_divergence_tokens(
    run_id: Id, session: Reading, limit: Annotated[int, page_size(50)], step: Step = None
) -> DivergentTokens:
    """The token types that hold most of the reverse KL, over all traced steps if none is named."""
    _require(session, run_id)
    return queries.divergent_tokens(session, run_id, step=step, limit=limit)


@router.get("/prefix-aid", operation_id="get_prefix_aid", responses=errors(404))
def get_prefix_aid(run_id: Id, session: Reading, step: Step = None) -> PrefixAid:
    """Where the divergence lies, how sure the teacher is and how much both models share, by position: at the first traced
    step and at another one, the newest if empty. POST /analyses with `divergence_by_position` asks more prompts."""
    _require(session, run_id)
    return queries.prefix_aid(session, run_id, step=step)


def _require(session: Reading, run_id: str) -> None:
    if not exists(session, run_id):
        raise not_found("run", run_id)
