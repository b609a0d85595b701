"""Specs before they become runs: schema, checks, cost, presets, preflights."""

from typing import Annotated, Any

from fastapi import Body, Response
from sqlalchemy.orm import Session

from backend.dependencies import Bell, Caller, Creation, Id, Reading, errors, page_size
from backend.estimate import estimate
from backend.estimates import Estimate
from backend.locked_route import locked_router
from backend.presets import presets
from backend.problems import findings_in, not_found
from backend.queries import preflights as queries
from backend.queries.prompt_files import require_uploads
from backend.queries.runs import training_rates
from backend.schemas import Preflight, Preset
from engine.findings import Finding
from engine.spec import RunSpec

_Page = Annotated[int, page_size(50)]
router = locked_router(tags=["specs"])


@router.get("/spec/schema", operation_id="get_spec_schema", responses=errors())
def get_spec_schema() -> dict[str, Any]:
    """The JSON schema of a run's spec."""
    return RunSpec.model_json_schema()


@router.post("/spec/validate", operation_id="validate_spec", responses=errors(403, 413, 415))
def validate_spec(body: Annotated[Any, Body(description="A spec, valid or not.")] = None) -> list[Finding]:
    """What is wrong with a spec by the rules that need no model; empty when nothing is."""
    return findings_in(body, RunSpec)


@router.post("/estimate", operation_id="estimate_run", responses=errors(403, 413, 415))
def estimate_run(body: RunSpec, session: Reading) -> Estimate:
    """What a run will cost in FLOPs, memory and, after earlier runs of the same models, time."""
    return estimate(body, training_rates(session, body.student.path, body.teacher.path))


@router.get("/presets", operation_id="list_presets", responses=errors())
def list_presets() -> list[Preset]:
    """The ready experiments that come with Incipit."""
    return list(presets())


@router.post(
    "/preflights",
    operation_id="create_preflight",
    status_code=201,
    response_model=Preflight,
    responses=errors(403, 409, 413, 415),
)
def create_preflight(body: RunSpec, once: Creation, caller: Caller, doorbell: Bell) -> Response:
    """Have a worker check a spec: models, tokenizers, context lengths, data."""
    queued: list[str] = []

    def create(session: Session) -> tuple[Preflight, str]:
        require_uploads(session, caller.home_project, [body])
        created = queries.create_preflight(session, body, owner=caller)
        queued.append(created.id)
        return created, f"/api/v1/preflights/{created.id}"

    answer = once.answer(body, create)
    for preflight_id in queued:
        doorbell.ring_preflight(preflight_id)
    return answer


@router.get("/preflights", operation_id="list_preflights", responses=errors())
def list_preflights(session: Reading, limit: _Page) -> list[Preflight]:
    """The last preflights, newest first."""
    return queries.preflights(session, limit=limit)


@router.get("/preflights/{preflight_id}", operation_id="get_preflight", responses=errors(404))
def get_preflight(preflight_id: Id, session: Reading) -> Preflight:
    """One preflight and what it has found so far."""
    found = queries.preflight(session, preflight_id)
    if found is None:
        raise not_found("preflight", preflight_id)
    return found
