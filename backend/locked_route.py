"""The routes of the API: each asks who it is and whether they may before it looks at what was sent, and answers in time."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from fastapi.security.utils import get_authorization_scheme_param
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send

from backend.access import Principal
from backend.error_answers import problem
from backend.limits import Limits
from backend.problems import Refusal
from backend.request_bodies import TAKES_FILE, checked
from backend.roles import need_of
from backend.settings import Settings
from backend.sign_in import principal_of

_log = logging.getLogger(__name__)


class LockedRoute(APIRoute):
    """A route whose requests pass role, address and body, in this order, within a time."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler that FastAPI makes, behind the lock."""
        answer = super().get_route_handler()
        operation = self.operation_id

        async def unlock_and_answer(request: Request) -> Response:
            request.state.principal = await run_in_threadpool(_authorized, request, operation)
            _check_address(request)
            settings: Settings = request.app.state.settings
            return await answer(await checked(request, settings.limits, operation))

        return unlock_and_answer

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; what has not begun to answer in time is given up (503) and ends by itself, as threads cannot be stopped."""
        settings: Settings = scope["app"].state.settings
        begun = asyncio.Event()
        is_given_up = False

        async def send_unless_given_up(message: Message) -> None:
            begun.set()
            if not is_given_up:
                await send(message)

        seconds = _seconds_for(self.operation_id, settings.limits)
        answering = asyncio.create_task(super().handle(scope, receive, send_unless_given_up))
        beginning = asyncio.create_task(begun.wait())
        try:
            await asyncio.wait(
                {answering, beginning},
                timeout=seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if begun.is_set() or answering.done():
                await answering
                return
        except asyncio.CancelledError:
            answering.cancel()
            raise
        finally:
            beginning.cancel()
        is_given_up = True
        answering.add_done_callback(_note_late_end)
        await problem(scope, _too_late(seconds), {"Retry-After": "5"})(scope, receive, send)


def locked_router(**options: Any) -> APIRouter:
    """A router whose routes are locked."""
    return APIRouter(route_class=LockedRoute, **options)


def _authorized(request: Request, operation: str | None) -> Principal | None:
    """Who asks, None where anybody may; Refusal (401, 403) when they may not."""
    need = need_of(operation)
    if need == "open" or need == "signature":
        return None
    scheme, credential = get_authorization_scheme_param(request.headers.get("authorization"))
    state = request.app.state
    is_given = scheme.lower() == "bearer" and credential
    principal = principal_of(credential, state.settings, state.database, state.oidc) if is_given else None
    if principal is None:
        sentence = "This needs a valid API key; send it as `Authorization: Bearer …`, or ask an admin for one."
        raise Refusal(401, sentence, headers={"WWW-Authenticate": "Bearer"})
    request.state.principal_id = principal.id  # for the log, also of who is refused below
    if need is None:
        raise Refusal(403, "No role is declared for this operation, so nobody may use it; this is a fault of Incipit.")
    role = "admin" if need == "admin of all projects" else need
    if not principal.may(role):
        raise Refusal(403, f"Your role is {principal.role} but this needs {role}; ask an admin for another key.")
    if need == "admin of all projects" and not principal.is_admin_of_all:
        raise Refusal(
            403,
            f"You are an admin of {principal.project_id!r} but this changes what serves all projects; use an admin's key of "
            "project '*'.",
        )
    return principal


def _check_address(request: Request) -> None:
    if b"%00" in request.scope.get("query_string", b"") or any(ord(one) < 32 for one in request.scope["path"]):
        raise Refusal(422, "The address holds NUL or another control character, which no name has; remove it.")


def _seconds_for(operation: str | None, limits: Limits) -> float:
    return limits.request_seconds + (limits.upload_seconds if operation in TAKES_FILE else 0.0)


def _too_late(seconds: float) -> Refusal:
    return Refusal(
        503,
        f"The answer took longer than {seconds:g} s, which is the limit; ask for less at once, or try again later "
        "(with an Idempotency-Key nothing is made twice).",
    )


def _note_late_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.warning("A request that had been given up failed in the end: %r", task.exception())
