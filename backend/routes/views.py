"""Views that people keep with a note."""

from typing import Annotated

from fastapi import Header, Response
from sqlalchemy.orm import Session

from backend.dependencies import Caller, Config, Creation, Id, Reading, Store, errors, page_size
from backend.locked_route import locked_router
from backend.problems import not_found
from backend.queries import saved_views as queries
from backend.saved_views import SavedView, SavedViewWrite, etag_of

router = locked_router(prefix="/views", tags=["views"])
IfMatch = Annotated[str | None, Header(max_length=100, description="The view's ETag, as GET gave it.")]


@router.post(
    "", operation_id="create_view", status_code=201, response_model=SavedView, responses=errors(403, 409, 413, 415)
)
def create_view(body: SavedViewWrite, once: Creation, caller: Caller, settings: Config) -> Response:
    """Keep a view of Compare with a hypothesis or a result."""

    def create(session: Session) -> tuple[SavedView, str]:
        created = queries.create_view(session, body, caller, settings.limits)
        return created, f"/api/v1/views/{created.id}"

    return once.answer(body, create)


@router.get("", operation_id="list_views", responses=errors())
def list_views(session: Reading, limit: Annotated[int, page_size(200)]) -> list[SavedView]:
    """The project's saved views, the newest first."""
    return queries.views(session, limit=limit)


@router.get("/{view_id}", operation_id="get_view", responses=errors(404))
def get_view(view_id: Id, session: Reading, response: Response) -> SavedView:
    """One saved view; its ETag is what PUT asks for."""
    return _answered(queries.view(session, view_id), view_id, response)


@router.put("/{view_id}", operation_id="update_view", responses=errors(403, 404, 412, 413, 415, 428))
def update_view(
    view_id: Id, body: SavedViewWrite, database: Store, response: Response, if_match: IfMatch = None
) -> SavedView:
    """Replace the name, note and address of a view; any operator of the project may.

    If-Match carries the ETag that was read, so that nobody undoes another's change unseen.
    """
    with database.write() as session:
        return _answered(queries.update_view(session, view_id, body, if_match), view_id, response)


@router.post("/{view_id}/remove", operation_id="remove_view", responses=errors(403, 404, 413, 415))
def remove_view(view_id: Id, database: Store) -> SavedView:
    """Remove a view; any operator of the project may. The answer is what it was."""
    with database.write() as session:
        return _found(queries.remove_view(session, view_id), view_id)


def _answered(view: SavedView | None, id: str, response: Response) -> SavedView:
    found = _found(view, id)
    response.headers["ETag"] = etag_of(found)
    return found


def _found(view: SavedView | None, id: str) -> SavedView:
    if view is None:
        raise not_found("view", id)
    return view
