"""The API: create_app(settings) makes it; nothing happens when this module is imported."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from fastapi import APIRouter, Depends, FastAPI
from prometheus_client import CollectorRegistry
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.routing import BaseRoute

from backend.artifact_store import artifact_store
from backend.database import Database
from backend.dependencies import authorize
from backend.doorbell import Doorbell
from backend.download_places import DownloadPlaces
from backend.error_answers import answer_errors
from backend.event_stream import StreamPlaces
from backend.guard import Guard
from backend.health import version
from backend.idempotency import InFlight
from backend.incoming import UploadPlaces
from backend.locked_route import LockedRoute
from backend.migrate import require_head
from backend.oidc import OidcVerifier
from backend.openapi import complete_document
from backend.request_log import RequestLog
from backend.routes import (
    access,
    alerts,
    analyses,
    checkpoints,
    divergence,
    experiments,
    exports,
    health,
    pins,
    playground,
    prompt_files,
    resources,
    rollouts,
    runs,
    specs,
    streams,
    views,
    wishes,
    workers,
)
from backend.settings import Settings
from backend.store_watch import StoreWatch
from backend.telemetry import InstallationCollector

_DESCRIPTION = """Trains a small language model (the student) to follow a large one (the teacher) on the first
tokens only.

Every error is a `Problem` (RFC 9457). State-changing requests carry `application/json`; those that
make something take an `Idempotency-Key`. Times are UTC; units: tokens,
nats, FLOPs, seconds, bytes."""

_MODULES = (
    experiments, runs, streams, wishes, rollouts, divergence, resources, checkpoints, exports, pins, prompt_files, specs, analyses,
    playground, views, alerts, access, workers,
)  # fmt: skip


def _routes() -> list[BaseRoute]:
    router = APIRouter(dependencies=[Depends(authorize)])
    for module in _MODULES:
        router.include_router(module.router, prefix="/api/v1")
    router.include_router(checkpoints.signed_router, prefix="/api/v1")
    router.include_router(exports.signed_router, prefix="/api/v1")
    router.include_router(health.open_router)
    router.include_router(health.figures_router)
    return router.routes


# Once: they know no settings, and they take over 20 times as long to make as all else of an app.
_ROUTES = _routes()


def create_app(settings: Settings | None = None) -> FastAPI:
    """The API of one installation; its database must have the newest schema when it starts (backend.migrate)."""
    chosen = settings or Settings()
    figures = CollectorRegistry()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        chosen.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with closing(_database(chosen)) as database:
            require_head(database)
            with closing(Doorbell(chosen.broker_url)) as doorbell:
                app.state.settings = chosen
                app.state.database = database
                app.state.artifacts = artifact_store(chosen)
                app.state.doorbell = doorbell
                app.state.store_watch = StoreWatch(app.state.artifacts)
                app.state.in_flight = InFlight()
                app.state.oidc = OidcVerifier(chosen) if chosen.oidc_issuer else None
                app.state.stream_places = StreamPlaces(chosen.limits.streams, chosen.limits.streams_each)
                app.state.upload_places = UploadPlaces(chosen.limits.uploads)
                app.state.download_places = DownloadPlaces(chosen.limits.downloads)
                collector = InstallationCollector(database, app.state.stream_places)
                figures.register(collector)
                yield
                figures.unregister(collector)
                app.state.store_watch.close()

    app = FastAPI(
        routes=_ROUTES,
        title="Incipit",
        version=version().version,
        description=_DESCRIPTION,
        lifespan=lifespan,
        dependencies=[Depends(authorize)],
        openapi_url="/api/v1/openapi.json",
        docs_url="/docs",
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.figures = figures
    # Added before the guard, hence inside it: what the guard refuses has no route to be counted by.
    Instrumentator(registry=figures, excluded_handlers=["^/metrics$", "^/livez$"]).instrument(
        app, metric_namespace="incipit"
    )
    app.add_middleware(Guard, settings=chosen)
    app.add_middleware(RequestLog)
    app.router.route_class = LockedRoute
    answer_errors(app)
    complete_document(app, chosen.limits)
    return app


def _database(settings: Settings) -> Database:
    limits = settings.limits
    return Database(settings.sql_url, statement_seconds=limits.statement_seconds, lock_seconds=limits.lock_seconds)
