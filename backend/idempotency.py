"""Requests that make something at most once, however often a client has to send them (header Idempotency-Key)."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastapi.responses import Response
from sqlalchemy.orm import Session

from backend.problems import Refusal
from backend.project_database import ProjectDatabase
from backend.queries.idempotency import RequestName, begin, finish
from engine.frozen import Frozen

_RETRY_SECONDS = 1


class InFlight:
    """The names that this process is working on. Another process that works on one makes the transaction wait."""

    def __init__(self) -> None:
        self._names: set[RequestName] = set()
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, name: RequestName) -> Iterator[None]:
        """Held while a request is answered; refuses a second one of the same name (409)."""
        with self._lock:
            if name in self._names:
                raise Refusal(
                    409,
                    f"A request with the Idempotency-Key {name.key[:64]!r} is still being answered; send it again in a second.",
                    headers={"Retry-After": str(_RETRY_SECONDS)},
                )
            self._names.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._names.discard(name)


class Once:
    """Answers one creating request. The key, what is made and the answer are stored in one transaction."""

    def __init__(self, database: ProjectDatabase, name: RequestName | None, in_flight: InFlight) -> None:
        """`name` is None for a request without a key, which makes something new each time."""
        self._database = database
        self._name = name
        self._in_flight = in_flight

    def answer(self, asked: Frozen, create: Callable[[Session], tuple[Frozen, str]]) -> Response:
        """201 with what `create` returns and its address; for a repeated request what was answered before.

        `create` is called at most once, and not for a repeated request.
        """
        if self._name is None:
            with self._database.write() as session:
                created, location = create(session)
            return _response(created.model_dump_json(), location)
        with self._in_flight.hold(self._name):
            return self._answer_once(self._name, asked, create)

    def _answer_once(
        self, name: RequestName, asked: Frozen, create: Callable[[Session], tuple[Frozen, str]]
    ) -> Response:
        sha256 = hashlib.sha256(asked.model_dump_json().encode("utf-8", "surrogatepass")).hexdigest()
        with self._database.write() as session:
            stored = begin(session, name, sha256)
            if stored is None:
                created, location = create(session)
                body = created.model_dump_json()
                finish(session, name, body=body, location=location)
        if stored is None:
            return _response(body, location)
        if stored.request_sha256 != sha256:
            raise Refusal(
                422,
                f"The Idempotency-Key {name.key[:64]!r} was used for another body; take a new key for a new request.",
            )
        answer = _response(stored.body, stored.location)
        answer.headers["Idempotency-Replayed"] = "true"
        return answer


def _response(body: str, location: str) -> Response:
    return Response(body, 201, {"Location": location}, "application/json")
