"""What people may ask of a run: stop, pause, go on, try again, once more with changes, sooner."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Header, Response
from pydantic import BeforeValidator, Field
from sqlalchemy.orm import Session

from backend.dependencies import Bell, Caller, Config, Id, Store, errors
from backend.expansion import planned_runs
from backend.locked_route import locked_router
from backend.needs import Needs, RunNeeds
from backend.problems import Refusal, not_found
from backend.queries import runs as queries
from backend.queries import wishes
from backend.queries.experiments import add_runs
from backend.quota import require_room
from backend.schemas import ExperimentCreate, Run, Variant
from backend.whole_numbers import whole
from engine.frozen import Frozen
from engine.spec import Name

router = locked_router(prefix="/runs", tags=["runs"])

_ERRORS = errors(403, 404, 409, 413, 415)

Priority = Annotated[int, Field(ge=-100, le=100), BeforeValidator(whole)]
IfMatch = Annotated[str | None, Header(max_length=100, description="The run's ETag, as GET gave it.")]


class Cancel(Frozen):
    """How a run shall stop."""

    checkpoint: bool = True
    """Whether the step it is at is saved first."""


class Retry(Frozen):
    """How a run shall be tried again."""

    from_scratch: bool = False
    """Begin with the first step, whatever was saved; its figures are replaced."""


class Clone(Frozen):
    """What a copy does otherwise."""

    name: Name | None = None
    """Name of the copy; the run's, with "copy" behind it, if empty."""
    changes: dict[str, object] = {}
    """Dotted field of the spec to new value, as in a variant."""
    seed: Annotated[int, Field(ge=0, le=2**53), BeforeValidator(whole)] | None = None
    """Seed of the copy; the run's if empty."""
    needs: Needs | None = None
    """What the copy's worker must have; the run's labels and its memory as estimated now if empty."""


class RunPatch(Frozen):
    """What can be changed of a run."""

    priority: Priority
    """How urgent it is among the queued runs, from -100 to 100; higher ones first."""


@router.post("/{run_id}/cancel", operation_id="cancel_run", responses=_ERRORS)
def cancel_run(run_id: Id, database: Store, response: Response, body: Cancel | None = None) -> Run:
    """End a run: at once while no worker holds it, else within seconds. It can be retried from its last checkpoint."""
    wanted = body or Cancel()
    return _asked(
        run_id, database, response, lambda session: wishes.ask_to_cancel(session, run_id, checkpoint=wanted.checkpoint)
    )


@router.post("/{run_id}/pause", operation_id="pause_run", responses=_ERRORS)
def pause_run(run_id: Id, database: Store, response: Response) -> Run:
    """Write a checkpoint after the present step and leave the worker free, until the run is resumed."""
    return _asked(run_id, database, response, lambda session: wishes.ask_to_pause(session, run_id))


@router.post("/{run_id}/resume", operation_id="resume_run", responses=_ERRORS)
def resume_run(run_id: Id, database: Store, doorbell: Bell, response: Response) -> Run:
    """Queue a paused run again; it goes on from its last checkpoint."""
    found = _asked(run_id, database, response, lambda session: wishes.ask_to_resume(session, run_id))
    doorbell.ring_run(run_id)
    return found


@router.post("/{run_id}/retry", operation_id="retry_run", responses=_ERRORS)
def retry_run(run_id: Id, database: Store, doorbell: Bell, response: Response, body: Retry | None = None) -> Run:
    """Queue a failed or cancelled run again, from its last checkpoint or from scratch."""
    wanted = body or Retry()
    found = _asked(
        run_id,
        database,
        response,
        lambda session: wishes.ask_to_retry(session, run_id, from_scratch=wanted.from_scratch),
    )
    doorbell.ring_run(run_id)
    return found


@router.post("/{run_id}/clone", operation_id="clone_run", status_code=201, responses=_ERRORS)
def clone_run(
    run_id: Id,
    database: Store,
    caller: Caller,
    doorbell: Bell,
    settings: Config,
    response: Response,
    body: Clone | None = None,
) -> Run:
    """Queue a new run of the same experiment with this one's spec and some changes."""
    wanted = body or Clone()
    with database.read() as session:
        origin = queries.run(session, run_id)
    if origin is None:
        raise not_found("run", run_id)
    variant = Variant(name=wanted.name or _copy_name(origin.name), changes=wanted.changes, note=origin.note)
    seeds = [origin.seed if wanted.seed is None else wanted.seed]
    asked = [label for label in origin.needs.labels if label not in RunNeeds.stated(origin.spec).labels]
    needs = Needs(labels=asked) if wanted.needs is None else wanted.needs
    planned = planned_runs(
        ExperimentCreate(name="clone", base=origin.spec, variants=[variant], seeds=seeds, needs=needs)
    )
    with database.write() as session:
        require_room(session, caller, 1, settings.limits)
        (copy_id,) = add_runs(session, origin.experiment_id, planned, owner=caller)
        copy = queries.run(session, copy_id)
    assert copy is not None, "it was created in this transaction"
    doorbell.ring_run(copy_id)
    response.headers["Location"] = f"/api/v1/runs/{copy_id}"
    response.headers["ETag"] = etag_of(copy)
    return copy


@router.patch("/{run_id}", operation_id="patch_run", responses={**_ERRORS, **errors(412, 428)})
def patch_run(run_id: Id, body: RunPatch, database: Store, response: Response, if_match: IfMatch = None) -> Run:
    """Change how urgent a run is. If-Match carries the ETag that was read, so that nobody undoes another's change unseen."""

    def change(session: Session) -> None:
        found = queries.run(session, run_id)
        if found is None:
            raise wishes.NoSuchRun(run_id)
        if if_match is None:
            raise Refusal(428, "PATCH needs the header If-Match with the run's ETag; read the run first.")
        if if_match not in (etag_of(found), "*"):
            raise Refusal(
                412, f"The run was changed since: its ETag is {etag_of(found)}, not {if_match[:50]}; read it again."
            )
        wishes.set_priority(session, run_id, body.priority)

    return _asked(run_id, database, response, change)


def etag_of(run: Run) -> str:
    """The ETag of a run: what people change it by, not the figures that training adds."""
    return f'"{run.row_version}"'


def _asked(run_id: str, database: Store, response: Response, ask: Callable[[Session], None]) -> Run:
    """The run after `ask`, all in one transaction."""
    try:
        with database.write() as session:
            ask(session)
            found = queries.run(session, run_id)
    except wishes.NoSuchRun:
        raise not_found("run", run_id) from None
    except wishes.WishRefused as refused:
        raise Refusal(409, str(refused)) from None
    assert found is not None, "it was found in this transaction"
    response.headers["ETag"] = etag_of(found)
    return found


def _copy_name(name: str) -> str:
    return f"{name[:120]} copy"
