"""Runs, and what they have recorded."""

from typing import Annotated, Literal

from fastapi import Query, Response
from pydantic import Field

from backend.cursors import from_cursor, to_cursor
from backend.dependencies import ID_PATTERN, TEXT_PATTERN, Cursor, Id, Reading, errors, page_size
from backend.locked_route import locked_router
from backend.problems import not_found
from backend.queries import checkpoints as checkpoint_queries
from backend.queries import history, metrics, rollouts
from backend.queries import runs as queries
from backend.routes.wishes import etag_of
from backend.run_states import RunState
from backend.schemas import Checkpoint, Evaluation, EventPage, Metric, Positions, RolloutPage, Run, RunPage

router = locked_router(prefix="/runs", tags=["runs"])

_MAX_STEP = 2**31 - 1
Kind = Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")]


@router.get("", operation_id="list_runs", responses=errors())
def list_runs(
    session: Reading,
    limit: Annotated[int, page_size(100)],
    state: Annotated[list[RunState] | None, Query(max_length=16, description="Only runs in one of these.")] = None,
    experiment_id: Annotated[str | None, Query(pattern=ID_PATTERN)] = None,
    search: Annotated[
        str | None, Query(max_length=128, pattern=TEXT_PATTERN, description="Part of the run's or experiment's name.")
    ] = None,
    cursor: Cursor = None,
) -> RunPage:
    """Runs, newest first."""
    wanted = queries.RunFilter(states=state or (), experiment_id=experiment_id, search=search)
    before = from_cursor(cursor) if cursor else None
    items = queries.runs(session, wanted, before=before, limit=limit)
    return RunPage(items=items, next_cursor=to_cursor(items[-1].id) if len(items) == limit else None)


@router.get("/{run_id}", operation_id="get_run", responses=errors(404))
def get_run(run_id: Id, session: Reading, response: Response) -> Run:
    """One run with its spec; the ETag is its row_version, which PATCH asks for."""
    found = queries.run(session, run_id)
    if found is None:
        raise not_found("run", run_id)
    response.headers["ETag"] = etag_of(found)
    return found


@router.get("/{run_id}/metrics", operation_id="get_metrics", responses=errors(404))
def get_metrics(
    run_id: Id,
    session: Reading,
    keys: Annotated[
        str | None,
        Query(max_length=2000, pattern=TEXT_PATTERN, description="Names, separated by commas; all if empty."),
    ] = None,
    after_step: Annotated[int, Query(ge=0, le=_MAX_STEP)] = 0,
) -> list[Metric]:
    """Metrics by step, each thinned to at most 2,000 points, with first, last, extremes and gaps of every range of steps."""
    _require(session, run_id)
    return metrics.metrics(session, run_id, keys.split(",") if keys else (), after_step=after_step)


@router.get("/{run_id}/events", operation_id="get_events", responses=errors(404))
def get_events(
    run_id: Id,
    session: Reading,
    limit: Annotated[int, page_size(200)],
    after_seq: Annotated[int, Query(ge=0, le=2**53)] = 0,
    kind: Annotated[list[Kind] | None, Query(max_length=20, description="Such as `warning`; all if empty.")] = None,
) -> EventPage:
    """The run's history behind a sequence number, oldest first; with `kind=warning` what it warned of."""
    _require(session, run_id)
    return history.events(session, run_id, after_seq=after_seq, limit=limit, kinds=kind or ())


@router.get("/{run_id}/evaluations", operation_id="get_evaluations", responses=errors(404))
def get_evaluations(run_id: Id, session: Reading) -> list[Evaluation]:
    """Full-length evaluations of the student, and those of base and teacher before the first step."""
    _require(session, run_id)
    return history.evaluations(session, run_id)


@router.get("/{run_id}/positions", operation_id="get_positions", responses=errors(404))
def get_positions(
    run_id: Id,
    session: Reading,
    source: Literal["training", "student", "base"] | None = None,
    step: Annotated[list[int] | None, Query(max_length=200)] = None,
) -> list[Positions]:
    """Divergence by completion position; training curves of about a hundred steps, unless steps are named."""
    _require(session, run_id)
    steps = [one for one in step or () if 0 <= one <= _MAX_STEP]
    return history.positions(session, run_id, source=source, steps=steps)


@router.get("/{run_id}/rollouts", operation_id="list_rollouts", responses=errors(404))
def list_rollouts(
    run_id: Id,
    session: Reading,
    step: Annotated[int | None, Query(ge=0, le=_MAX_STEP, description="The newest traced step if empty.")] = None,
    sort: rollouts.Order = "most_divergent",
) -> RolloutPage:
    """Traced rollouts of a step."""
    _require(session, run_id)
    return rollouts.rollouts(session, run_id, step=step, order=sort)


@router.get("/{run_id}/checkpoints", operation_id="list_run_checkpoints", responses=errors(404))
def list_run_checkpoints(run_id: Id, session: Reading) -> list[Checkpoint]:
    """The run's checkpoints, newest first."""
    _require(session, run_id)
    return checkpoint_queries.checkpoints(session, run_id=run_id, before=None, limit=1000)


def _require(session: Reading, run_id: str) -> None:
    if not queries.exists(session, run_id):
        raise not_found("run", run_id)
