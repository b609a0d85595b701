"""Who is asking, and the API keys with which others may ask."""

from typing import Annotated

from fastapi import Path, Response

from backend.access import ALL_PROJECTS, ApiKey, CreatedKey, KeyCreate, Principal
from backend.dependencies import ID_PATTERN, Caller, Reading, Store, errors
from backend.locked_route import locked_router
from backend.problems import Refusal, not_found
from backend.queries import api_keys as queries

router = locked_router(tags=["access"])

KeyId = Annotated[str, Path(pattern=ID_PATTERN, description="The part of the key between the underscores.")]


@router.get("/me", operation_id="get_me", responses=errors())
def get_me(caller: Caller) -> Principal:
    """Who the credential of this request belongs to."""
    return caller


@router.get("/keys", operation_id="list_keys", responses=errors(403))
def list_keys(session: Reading) -> list[ApiKey]:
    """API keys, the newest first, also those that are revoked or have expired."""
    return queries.keys(session)


@router.post("/keys", operation_id="create_key", status_code=201, responses=errors(403, 413, 415))
def create_key(body: KeyCreate, database: Store, caller: Caller, response: Response) -> CreatedKey:
    """Make an API key. Only this answer holds it."""
    if caller.project_id not in (ALL_PROJECTS, body.project_id):
        raise Refusal(
            403,
            f"project_id is {body.project_id!r} but you are an admin of {caller.project_id!r}; make keys of your project.",
        )
    with database.write() as session:
        created = queries.create_key(session, body, created_by=caller.id)
    response.headers["Cache-Control"] = "no-store"
    return created


@router.post("/keys/{key_id}/revoke", operation_id="revoke_key", responses=errors(403, 404, 413, 415))
def revoke_key(key_id: KeyId, database: Store) -> ApiKey:
    """Make a key invalid for good; one that is revoked already stays as it is."""
    with database.write() as session:
        found = queries.revoke_key(session, key_id)
    if found is None:
        raise not_found("key", key_id)
    return found
