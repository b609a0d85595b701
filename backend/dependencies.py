"""What routes are given: a session that reads, the database, settings, the doorbell."""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from backend.access import Principal
from backend.database import Database
from backend.doorbell import Doorbell
from backend.problems import Refusal
from backend.settings import Settings
from backend.sign_in import principal_of

_bearer = HTTPBearer(auto_error=False, description="An API key, or the local stack's token.")

# For the OpenAPI document; backend/app.py adds the schema of Problem to it.
_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
Responses = dict[int | str, dict[str, Any]]

ERRORS: Responses = {
    status: {"content": _PROBLEM, "description": description}
    for status, description in {
        401: "No valid credential.",
        403: "Not with this role or from this origin, or a link that has expired.",
        404: "There is no such thing.",
        409: "Not in this state.",
        410: "It was there, but cannot be read any more.",
        412: "It was changed since it was read.",
        413: "The body is too large.",
        415: "The body is not JSON.",
        416: "Not one range inside the file.",
        421: "Not the name of this API.",
        422: "What was sent is not valid; see errors.",
        428: "If-Match is missing.",
        500: "A fault of Incipit.",
        503: "The database does not answer.",
    }.items()
}


def errors(*statuses: int) -> Responses:
    """The errors of a route, for its OpenAPI entry: these, and those that every route can have."""
    return {status: ERRORS[status] for status in (401, 421, 422, 500, 503, *statuses)}


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database


def _doorbell(request: Request) -> Doorbell:
    doorbell: Doorbell = request.app.state.doorbell
    return doorbell


Config = Annotated[Settings, Depends(_settings)]
Store = Annotated[Database, Depends(_database)]
Bell = Annotated[Doorbell, Depends(_doorbell)]


def _reading(database: Store) -> Iterator[Session]:
    with database.read() as session:
        yield session


def authorize(
    settings: Config, database: Store, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Principal:
    """Who asks. Refuses a request without a valid credential, always with the same words."""
    principal = principal_of(given.credentials, settings, database) if given else None
    if principal is None:
        sentence = "This needs a valid API key; send it as `Authorization: Bearer …`, or ask an admin for one."
        raise Refusal(401, sentence, headers={"WWW-Authenticate": "Bearer"})
    return principal


Caller = Annotated[Principal, Depends(authorize)]


def require_admin(caller: Caller) -> None:
    """Refuses everybody but admins."""
    if not caller.may("admin"):
        raise Refusal(403, f"Your role is {caller.role} but this needs admin; ask an admin.")


Reading = Annotated[Session, Depends(_reading)]
Id = Annotated[str, Path(max_length=64, description="As the lists give it.")]
Cursor = Annotated[str | None, Query(max_length=64, description="next_cursor of the page before.")]
Limit = Annotated[int, Query(ge=1, le=1000)]
