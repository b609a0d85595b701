"""Experiments."""

from typing import Annotated

from fastapi import Response
from sqlalchemy.orm import Session

from backend.cursors import from_cursor
from backend.dependencies import Bell, Caller, Config, Creation, Cursor, Id, Reading, errors, page_size
from backend.expansion import planned_runs
from backend.locked_route import locked_router
from backend.problems import not_found
from backend.queries import experiments as queries
from backend.queries.runs import RunFilter, runs
from backend.quota import require_room
from backend.schemas import Experiment, ExperimentCreate, RunSummary

_Page = Annotated[int, page_size(200)]
router = locked_router(prefix="/experiments", tags=["experiments"])


@router.post(
    "",
    operation_id="create_experiment",
    status_code=201,
    response_model=Experiment,
    responses=errors(403, 409, 413, 415),
)
def create_experiment(
    body: ExperimentCreate, once: Creation, caller: Caller, doorbell: Bell, settings: Config
) -> Response:
    """Create an experiment and queue its runs: one for each variant and seed, all or none."""
    planned = planned_runs(body)
    queued: list[str] = []

    def create(session: Session) -> tuple[Experiment, str]:
        require_room(session, caller, len(planned), settings.limits)
        id, run_ids = queries.create_experiment(session, body.name, body.note, planned, owner=caller)
        queued.extend(run_ids)
        created = queries.experiment(session, id)
        assert created is not None, "it was created in this transaction"
        return created, f"/api/v1/experiments/{id}"

    answer = once.answer(body, create)
    for run_id in queued:
        doorbell.ring_run(run_id)
    return answer


@router.get("", operation_id="list_experiments", responses=errors())
def list_experiments(session: Reading, limit: _Page, cursor: Cursor = None) -> list[Experiment]:
    """Experiments, newest first; a cursor is an experiment's place in that order (see next_cursor of runs)."""
    return queries.experiments(session, before=from_cursor(cursor) if cursor else None, limit=limit)


@router.get("/{experiment_id}", operation_id="get_experiment", responses=errors(404))
def get_experiment(experiment_id: Id, session: Reading) -> Experiment:
    """One experiment."""
    found = queries.experiment(session, experiment_id)
    if found is None:
        raise not_found("experiment", experiment_id)
    return found


@router.get("/{experiment_id}/runs", operation_id="list_experiment_runs", responses=errors(404))
def list_experiment_runs(experiment_id: Id, session: Reading) -> list[RunSummary]:
    """All runs of an experiment, in the order of its variants and seeds."""
    if queries.experiment(session, experiment_id) is None:
        raise not_found("experiment", experiment_id)
    return runs(session, RunFilter(experiment_id=experiment_id), limit=1000)[::-1]
