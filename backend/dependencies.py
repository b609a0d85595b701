"""What routes are given: a session that reads, the database, settings, the doorbell."""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from backend.access import Principal
from backend.artifact_store import ArtifactStore
from backend.database import Database
from backend.doorbell import Doorbell
from backend.idempotency import Once
from backend.problems import Refusal, invalid
from backend.project_database import ProjectDatabase
from backend.queries.idempotency import RequestName
from backend.settings import Settings
from engine.findings import Finding

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
        409: "Not in this state, or still being answered.",
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


def _artifacts(request: Request) -> ArtifactStore:
    store: ArtifactStore = request.app.state.artifacts
    return store


def _doorbell(request: Request) -> Doorbell:
    doorbell: Doorbell = request.app.state.doorbell
    return doorbell


Config = Annotated[Settings, Depends(_settings)]
WholeStore = Annotated[Database, Depends(_database)]
Bell = Annotated[Doorbell, Depends(_doorbell)]
Artifacts = Annotated[ArtifactStore, Depends(_artifacts)]


async def authorize(
    request: Request, _given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Principal | None:
    """Who asks, None where anybody may, as LockedRoute has found; any other route is refused to everybody."""
    if not hasattr(request.state, "principal"):
        raise Refusal(403, "This address has no lock, so nobody may use it; this is a fault of Incipit.")
    principal: Principal | None = request.state.principal
    return principal


def _caller(principal: Annotated[Principal | None, Depends(authorize)]) -> Principal:
    assert principal is not None, "an open route asks for nobody"
    return principal


Caller = Annotated[Principal, Depends(_caller)]


def _store(database: WholeStore, caller: Caller) -> ProjectDatabase:
    return ProjectDatabase(database, caller.project_id)


Store = Annotated[ProjectDatabase, Depends(_store)]
"""What the caller's project has, and nothing else."""


def _once(
    request: Request,
    database: Store,
    caller: Caller,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            pattern=r"^[\x21-\x7e]+$",
            description="Made up by the client; a request that is sent again with it within a day makes nothing new.",
        ),
    ] = None,
) -> Once:
    operation = request.scope["route"].operation_id
    name = RequestName(caller.id, operation, key) if key else None
    return Once(database, name, request.app.state.in_flight)


Creation = Annotated[Once, Depends(_once)]


def _reading(database: Store) -> Iterator[Session]:
    with database.read() as session:
        yield session


def _signed_reading(database: WholeStore) -> Iterator[Session]:
    with database.read() as session:
        yield session


# Scope: both end before the response is sent. By default they would end behind the last byte of a download, and a transaction
# that is open for hours keeps SQLite's log from being reset.
Reading = Annotated[Session, Depends(_reading, scope="function")]
SignedReading = Annotated[Session, Depends(_signed_reading, scope="function")]
"""For addresses whose signature names what they may read."""
TEXT_PATTERN = r"^[^\x00]*$"
ID_PATTERN = r"^[A-Za-z0-9_.-]{1,64}$"
Id = Annotated[str, Path(pattern=ID_PATTERN, description="As the lists give it.")]
Cursor = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{22}$", description="next_cursor of the page before.")]


def page_size(default: int) -> Any:
    """The dependency that gives a page's number of entries; the most that it may be is in the OpenAPI document."""

    def size(settings: Config, limit: Annotated[int, Query(ge=1, description="Entries of the page.")] = default) -> int:
        most = settings.limits.page_items
        if limit > most and limit != default:
            raise invalid([Finding(field="limit", message=f"limit is {limit} but must be at most {most}; lower it.")])
        return min(limit, most)

    return Depends(size)
