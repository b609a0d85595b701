"""Whether this installation works, and what it is."""

from fastapi import Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from backend.dependencies import Bell, Config, WholeStore, errors
from backend.health import health, version
from backend.installation import Liveness, Version
from backend.locked_route import locked_router
from backend.schemas import Health

open_router = locked_router(tags=["health"])
figures_router = locked_router(tags=["health"])


@open_router.get("/livez", operation_id="livez")
def livez() -> Liveness:
    """The process answers."""
    return Liveness()


@open_router.get("/readyz", operation_id="readyz", responses={503: {"model": Health, "description": "No database."}})
def readyz(request: Request, database: WholeStore, doorbell: Bell, settings: Config, response: Response) -> Health:
    """Database, broker, store and workers; 503 only without a database, since runs can be submitted without a broker."""
    found = health(database, doorbell, settings, request.app.state.store_watch.state)
    if found.database == "down":
        response.status_code = 503
    return found


@open_router.get("/version", operation_id="version")
def get_version() -> Version:
    """What is installed."""
    return version()


@figures_router.get("/metrics", operation_id="get_figures", response_class=PlainTextResponse, responses=errors())
def get_figures(request: Request) -> Response:
    """Figures of this installation and of this API process, in Prometheus' text format: numbers of all projects, no names."""
    return Response(generate_latest(request.app.state.figures), media_type=CONTENT_TYPE_LATEST)
