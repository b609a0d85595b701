"""Every error as application/problem+json (RFC 9457)."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from backend.limits import Limits
from backend.problems import Refusal, findings_in, invalid
from backend.schemas import Problem
from engine.findings import Finding, findings_of

_log = logging.getLogger(__name__)

_MEDIA_TYPE = "application/problem+json"

_SENTENCES = {
    404: "There is nothing at this address; see /api/v1/openapi.json for what there is.",
    405: "This address does not take that method; see /api/v1/openapi.json for those it takes.",
}


def problem(scope: Scope, refusal: Refusal, headers: Mapping[str, str] | None = None) -> Response:
    """The response to a request that is refused."""
    body = Problem(
        type=f"urn:incipit:problem:{HTTPStatus(refusal.status).phrase.lower().replace(' ', '-')}",
        title=HTTPStatus(refusal.status).phrase,
        status=refusal.status,
        detail=_sayable(refusal.detail),
        instance=f"urn:uuid:{scope.get('state', {}).get('request_id', '')}",
        errors=[
            Finding(**{**one.model_dump(), "field": _sayable(one.field), "message": _sayable(one.message)})
            for one in refusal.errors
        ],
    )
    named = {"X-Request-ID": scope.get("state", {}).get("request_id", ""), **(headers or {})}
    return Response(body.model_dump_json(), refusal.status, named, _MEDIA_TYPE)


def answer_errors(app: FastAPI) -> None:
    """Install the handlers that turn every error of this application into a problem."""

    @app.exception_handler(Refusal)
    async def _refused(request: Request, error: Refusal) -> Response:
        return problem(request.scope, error, error.headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return problem(request.scope, _refusal_of(request, error))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        detail = _SENTENCES.get(error.status_code, str(error.detail))
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(sorted(_methods_at(app, request.scope["path"])))
        return problem(request.scope, Refusal(error.status_code, detail), headers)

    @app.exception_handler(OperationalError)
    async def _no_database(request: Request, error: OperationalError) -> Response:  # it may name hosts and paths
        limits: Limits = request.app.state.settings.limits
        sentences = {
            "57014": f"The database worked on this for {limits.statement_seconds:g} s, which is the limit; ask for less at once.",
            "55P03": f"Somebody else changes the same for {limits.lock_seconds:g} s, which is the limit; try again in a few seconds.",
        }
        fallback = "The database does not answer; try again in a few seconds, then see `incipit doctor`."
        # The answer must not name hosts and paths; the log, which takes secrets out, has to say what it was.
        _log.warning("The database failed a request: %s", error.orig)
        sentence = sentences.get(getattr(error.orig, "sqlstate", ""), fallback)
        return problem(request.scope, Refusal(503, sentence), {"Retry-After": "5"})

    @app.exception_handler(Exception)
    async def _fault(request: Request, _error: Exception) -> Response:
        detail = (
            "This is a fault of Incipit, not of the request; the API's log has the details under the instance below."
        )
        return problem(request.scope, Refusal(500, detail))


def _methods_at(app: FastAPI, path: str) -> set[str]:
    """Methods that an address takes, of all routes: Starlette names those of the first."""
    routes = [route for route in app.routes if isinstance(route, APIRoute) and route.path_regex.match(path)]
    return {method for route in routes for method in route.methods}


def _refusal_of(request: Request, error: RequestValidationError) -> Refusal:
    details = error.errors()
    if details[0]["loc"] == ("body",) and details[0]["type"] == "missing":
        return Refusal(422, "The request has no body; send the JSON document that /api/v1/openapi.json describes.")
    route = request.scope["route"]
    found = []
    if any(one["loc"][0] == "body" for one in details):
        found = findings_in(error.body, route.body_field.field_info.annotation)
    beside = [
        InitErrorDetails(type=_type_of(one), loc=tuple(one["loc"][1:]), input=one["input"], ctx=one.get("ctx", {}))
        for one in details
        if one["loc"][0] != "body"
    ]
    if beside:
        found += findings_of(ValidationError.from_exception_data("request", beside), None)
    return invalid(found)


def _type_of(details: Mapping[str, Any]) -> str | PydanticCustomError:
    """The kind of an error as pydantic takes it: those of our own validators are not among the kinds that it knows."""
    kind: str = details["type"]
    is_known = kind in get_args(core_schema.ErrorType)
    return kind if is_known else PydanticCustomError(kind, "{said}", {**details.get("ctx", {}), "said": details["msg"]})


def _sayable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
