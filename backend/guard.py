"""What every request must pass before a route sees it: host and origin. Its body is looked at behind the lock of its route.

A web page that someone has open in the same browser must not be able to drive an API on 127.0.0.1: neither by a name
that it points there (DNS rebinding), nor by a form or by fetch (its Origin is not allowed; nor is its content type, see request_bodies.py).
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.error_answers import problem
from backend.problems import Refusal
from backend.settings import Settings

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._hosts = _LOOPBACK_NAMES | {settings.host.lower()} | {host.lower() for host in settings.allowed_hosts}
        self._origins = frozenset(settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            self._check_head(scope)
        except Refusal as refusal:
            await problem(scope, refusal)(scope, receive, send_named)
            return
        await self.app(scope, receive, send_named)

    def _check_head(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        name = _host_name(hosts[0]) if len(hosts) == 1 else None
        if name not in self._hosts:
            shown = hosts[0][:100] if hosts else ""
            raise Refusal(
                421, f"This API is not known as {shown!r}; use 127.0.0.1, or add the name to INCIPIT_ALLOWED_HOSTS."
            )
        if scope["method"] in _SAFE_METHODS:
            return
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and origin != f"{scope['scheme']}://{hosts[0]}":
            raise Refusal(
                403,
                f"Pages of {origin[:100]!r} may not change anything here; add the origin to INCIPIT_ALLOWED_ORIGINS.",
            )


def _host_name(host: str) -> str | None:
    """The name without the port, in lower case; None when it is not a plain host and port."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises when it is not a number
    except ValueError:
        return None
    return parts.hostname if parts.netloc == host and "@" not in host else None
