"""One line in the log for each request, and the id by which the line, the answer and its problem name each other."""

import logging
import time
from uuid import uuid4

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger(__name__)

# Asked for every few seconds by machines; they would be most of the log.
_QUIET_ROUTES = frozenset({"/livez", "/readyz", "/version", "/metrics"})


class RequestLog:
    """ASGI middleware. The line has the route's template and never the address, which may hold a pasted key."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        logging.getLogger("uvicorn.access").disabled = True  # its lines have the address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, request_id = time.perf_counter(), 500, str(uuid4())
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        # Not taken back at the end: a fault is logged by the server afterwards, and each request has its own context.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        finally:
            route = getattr(scope.get("route"), "path", None)
            fields = {
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(1000 * (time.perf_counter() - began), 1),
                "principal": state.get("principal_id"),
            }
            level = logging.DEBUG if route in _QUIET_ROUTES and status < 500 else logging.INFO
            _log.log(level, "%s %s %d", scope["method"], route or "(no route)", status, extra=fields)
