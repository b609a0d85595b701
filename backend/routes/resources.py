"""What a run's attempts ran on and used."""

from backend.dependencies import Id, Reading, errors
from backend.locked_route import locked_router
from backend.problems import not_found
from backend.queries import resources as queries
from backend.queries.runs import exists
from backend.resources import RunResources

router = locked_router(prefix="/runs", tags=["runs"])


@router.get("/{run_id}/resources", operation_id="get_run_resources", responses=errors(404))
def get_run_resources(run_id: Id, session: Reading) -> RunResources:
    """Workers, hosts and versions of the attempts, and samples of CPU, memory, GPU and disk while they ran."""
    if not exists(session, run_id):
        raise not_found("run", run_id)
    return queries.run_resources(session, run_id)
