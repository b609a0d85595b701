"""Analyses: questions about a pair of models that a worker answers without training."""

from typing import Annotated, Any

from fastapi import Response
from sqlalchemy.orm import Session

from backend.access import Principal
from backend.analyses import Analysis, AnalysisCreate
from backend.dependencies import Bell, Caller, Creation, Id, Reading, Store, errors, page_size
from backend.locked_route import locked_router
from backend.problems import invalid, not_found
from backend.queries import analyses as queries
from backend.queries.prompt_files import require_uploads
from backend.queries.runs import exists, project_of
from engine.analysis_spec import AnalysisSpec
from engine.findings import Finding

_Page = Annotated[int, page_size(50)]
router = locked_router(tags=["analyses"])


@router.get("/analyses/schema", operation_id="get_analysis_schema", responses=errors())
def get_analysis_schema() -> dict[str, Any]:
    """The JSON schema of an analysis."""
    return AnalysisSpec.model_json_schema()


@router.post(
    "/analyses",
    operation_id="create_analysis",
    status_code=201,
    response_model=Analysis,
    responses=errors(403, 409, 413, 415),
)
def create_analysis(body: AnalysisCreate, once: Creation, caller: Caller, doorbell: Bell) -> Response:
    """Have a worker answer a question about a pair of models."""
    queued: list[str] = []

    def create(session: Session) -> tuple[Analysis, str]:
        require_uploads(session, _project(session, body.run_id, caller), [body.run])
        spec = AnalysisSpec(run=body.run, analysis=body.analysis)
        created = queries.create_analysis(session, spec, owner=caller, run_id=body.run_id)
        queued.append(created.id)
        return created, f"/api/v1/analyses/{created.id}"

    answer = once.answer(body, create)
    for analysis_id in queued:
        # The worker looks for analyses whenever it looks for runs.
        doorbell.ring_run(analysis_id)
    return answer


@router.get("/analyses", operation_id="list_analyses", responses=errors())
def list_analyses(session: Reading, limit: _Page) -> list[Analysis]:
    """The last analyses, newest first."""
    return queries.analyses(session, limit=limit)


@router.get("/analyses/{analysis_id}", operation_id="get_analysis", responses=errors(404))
def get_analysis(analysis_id: Id, session: Reading) -> Analysis:
    """One analysis: how far it is, and its result."""
    found = queries.analysis(session, analysis_id)
    if found is None:
        raise not_found("analysis", analysis_id)
    return found


@router.post("/analyses/{analysis_id}/cancel", operation_id="cancel_analysis", responses=errors(403, 404))
def cancel_analysis(analysis_id: Id, database: Store) -> Analysis:
    """End an analysis; one that has ended already stays as it is."""
    with database.write() as session:
        queries.cancel_analysis(session, analysis_id)
        session.expire_all()
        found = queries.analysis(session, analysis_id)
    if found is None:
        raise not_found("analysis", analysis_id)
    return found


def _project(session: Session, run_id: str | None, caller: Principal) -> str:
    """Where an analysis belongs; Refusal (422) when its run is not there."""
    if run_id is None:
        return caller.home_project
    if not exists(session, run_id):
        message = f"run_id is {run_id!r}, but there is no such run; choose one of the list, or leave it out."
        raise invalid([Finding(field="run_id", message=message)])
    return project_of(session, run_id)
