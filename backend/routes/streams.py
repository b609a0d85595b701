"""A run's history as server-sent events."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from backend.dependencies import Caller, Config, Id, Store, errors
from backend.event_stream import NoPlace, StreamPlaces, follow
from backend.locked_route import locked_router
from backend.problems import Refusal, not_found
from backend.queries import runs as queries

router = locked_router(prefix="/runs", tags=["runs"])

LastEventId = Annotated[
    str | None, Header(max_length=20, description="The last id that was seen; what follows it is sent.")
]


async def _places(request: Request, caller: Caller) -> StreamPlaces:
    places: StreamPlaces = request.app.state.stream_places
    try:
        places.require(caller)
    except NoPlace as error:
        raise Refusal(503, str(error)) from None
    return places


def _start(run_id: Id, database: Store, last_event_id: LastEventId = None) -> int:
    """The sequence number to begin behind."""
    with database.read() as session:
        if not queries.exists(session, run_id):
            raise not_found("run", run_id)
    if last_event_id is None or not last_event_id:
        return 0
    if not last_event_id.isascii() or not last_event_id.isdigit():
        raise Refusal(422, f"Last-Event-ID is {last_event_id!r}; send the number that the last event had as its id.")
    return int(last_event_id)


@router.get(
    "/{run_id}/stream",
    operation_id="stream_run",
    response_class=EventSourceResponse,
    responses=errors(404),
)
async def stream_run(
    run_id: Id,
    database: Store,
    caller: Caller,
    settings: Config,
    places: Annotated[StreamPlaces, Depends(_places)],
    start: Annotated[int, Depends(_start)],
) -> AsyncIterator[ServerSentEvent]:
    """The run's history and progress as they come, until it has ended (`end`).

    Each event's name is its kind, its id its sequence number; `progress` has neither history nor id. `resync` means that
    the id sent belongs to another history, which is then sent whole.
    """
    # Taken here and not in a dependency: those of a stream have ended before it begins.
    with places.place(caller):
        async for event in follow(database, run_id, start, seconds=settings.limits.stream_seconds):
            yield event
