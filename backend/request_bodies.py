"""The JSON document in a request's body, or the refusal that says what is wrong with it. Files pass unread."""

import json
import math
from collections.abc import Mapping
from typing import Any

from fastapi import Request

from backend.limits import Limits
from backend.problems import Refusal, invalid
from engine.findings import Finding

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Where the spec lies in the bodies that have one.
_SPECS = {
    "create_experiment": "base",
    "create_analysis": "run",
    "create_preflight": "",
    "estimate_run": "",
    "validate_spec": "",
}
FILE_TYPE = "application/octet-stream"
TAKES_FILE = frozenset({"look_at_prompts", "upload_prompts"})
"""Operations whose body is a file, which they read themselves, piece by piece."""


class CheckedRequest(Request):
    """A request whose body has been read and is a document within the limits."""

    def __init__(self, request: Request, body: bytes, document: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._read = body
        self._document = document

    async def body(self) -> bytes:
        return self._read

    async def json(self) -> Any:
        return self._document


async def checked(request: Request, limits: Limits, operation: str | None) -> Request:
    """The request with its body read; Refusal (413, 415, 422) unless it is empty or a JSON document within the limits.

    A file is left unread.
    """
    if request.method in _SAFE_METHODS:
        return request
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if operation in TAKES_FILE:
        if kind != FILE_TYPE:
            raise Refusal(415, f"The request's content type is {kind[:100]!r}; send the file as it is, as {FILE_TYPE}.")
        return request
    body = await _read(request, limits)
    if kind != "application/json" and (body or kind):
        raise Refusal(415, f"The request's content type is {kind[:100]!r}; send JSON as application/json.")
    if not body:
        return CheckedRequest(request, body, None)
    document = parsed(body, limits)
    _check_spec(document, limits, operation)
    return CheckedRequest(request, body, document)


async def _read(request: Request, limits: Limits) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.body_bytes:
            raise Refusal(413, f"The request's body is larger than {limits.body_bytes} bytes; send less at once.")
    return bytes(body)


def parsed(body: bytes, limits: Limits) -> Any:
    """The document; Refusal (422) when it is not JSON, says something twice, or is deeper or longer than the limits."""
    if b"\\u0000" in body:
        raise Refusal(422, "The request's body holds the character NUL, which cannot be stored; remove it.")
    try:
        document = json.loads(
            body.decode(), object_pairs_hook=_without_doubles, parse_constant=_not_finite, parse_float=_finite
        )
    except json.JSONDecodeError as error:
        raise Refusal(
            422, f"The request's body is not JSON ({error.msg} at character {error.pos}); correct it."
        ) from None
    except UnicodeDecodeError as error:
        raise Refusal(422, f"The request's body is not UTF-8 at byte {error.start}; correct it.") from None
    except RecursionError:
        raise _too_deep(limits) from None
    except ValueError as error:  # a number of thousands of digits, or one of our own below
        raise Refusal(422, f"The request's body is not JSON ({str(error)[:200]}); correct it.") from None
    _check_shape(document, limits)
    return document


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {double[:64]!r} stands twice in an object")
    return document


def _not_finite(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:32]} is too large")
    return number


def _check_shape(document: Any, limits: Limits) -> None:
    waiting, count = [(document, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if not isinstance(value, dict | list):
            continue
        if depth >= limits.json_depth:
            raise _too_deep(limits)
        waiting += [(part, depth + 1) for part in (value.values() if isinstance(value, dict) else value)]
        if count + len(waiting) > limits.json_values:
            raise Refusal(
                422,
                f"The request's body holds more than {limits.json_values} values; send less at once, in several requests.",
            )


def _too_deep(limits: Limits) -> Refusal:
    return Refusal(422, f"The request's body is nested deeper than {limits.json_depth} levels; make it flatter.")


def _check_spec(document: Any, limits: Limits, operation: str | None) -> None:
    if operation not in _SPECS:
        return
    place = _SPECS[operation]
    spec = document.get(place) if place and isinstance(document, Mapping) else document
    num_bytes = len(json.dumps(spec, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace"))
    if num_bytes > limits.spec_bytes:
        message = (
            f"The spec has {num_bytes} bytes as JSON but may have {limits.spec_bytes}; shorten its texts and lists."
        )
        raise invalid([Finding(field=place, message=message)])
