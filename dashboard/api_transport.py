"""How the dashboard speaks to the API: HTTP in, typed results or an ApiError out. No Streamlit in here."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, TypeVar
from urllib.parse import urljoin, urlsplit
from uuid import uuid4

import httpx
from pydantic import TypeAdapter, ValidationError

from backend.schemas import Health, Link, Problem
from dashboard.api_errors import ApiDown, ApiError, Conflict, Forbidden, Invalid, NotFound, ServerFault, SignedOut
from dashboard.sendable import unsendable
from engine.frozen import STORED

T = TypeVar("T")
Document = dict[str, Any]  # a spec as plain JSON values, valid or not

# Short: a view that waits blocks its whole session, and Streamlit loses sessions that block while disconnected.
_TIMEOUT = httpx.Timeout(10.0, connect=2.0)
_TRIES = 2


class ApiTransport:
    """One per address and credential; safe to share between sessions. Every method raises ApiError."""

    def __init__(self, base_url: str, *, token: str | None = None, public_url: str | None = None) -> None:
        """`public_url` is where a browser reaches the API, when that differs from where this process does."""
        self.base_url = base_url.rstrip("/")
        self.public_url = (public_url or base_url).rstrip("/")
        # What one person is told must not be shown to another: caches go by address and credential.
        self.identity = f"{self.base_url} {hashlib.sha256((token or '').encode()).hexdigest()}"
        headers = {"User-Agent": "incipit-dashboard"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.Client(timeout=_TIMEOUT, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _get(self, path: str, kind: type[T], wanted: Mapping[str, Any] | None = None) -> T:
        given = {name: value for name, value in (wanted or {}).items() if value is not None}
        return self._call("GET", path, kind, tries=_TRIES, params=given)

    def _schema(self, path: str) -> Document:
        document = self._get(path, Document)
        if "properties" not in document:
            raise ServerFault(f"The answer to GET {path} does not fit this dashboard: is the API of its version?")
        return document

    def _post(self, path: str, kind: type[T], body: Any) -> T:
        return self._call("POST", path, kind, tries=1, json=body)

    def _create(self, path: str, kind: type[T], body: Any, key: str | None = None) -> T:
        """Sent again when no answer came: the key keeps the API from making two."""
        named = {"Idempotency-Key": key or str(uuid4())}
        return self._call("POST", path, kind, tries=_TRIES, json=body, headers=named)

    @contextmanager
    def _streamed(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """A response that is still coming in, from the API or from where it sends us: 200, or 206 to a Range among the headers."""
        sent = {**headers, "Accept-Encoding": "identity"}
        try:
            with self._http.stream("GET", self.base_url + path, headers=sent) as response:
                if response.status_code != 302:
                    if not response.is_success:
                        response.read()
                        raise error_of(response)
                    yield response
                    return
                elsewhere = response.headers
            with self._sent_elsewhere(elsewhere, headers) as response:
                yield response
        except httpx.TransportError as error:
            raise ApiDown(f"The API at {self.base_url} does not send any more ({reason_of(error)}).") from None

    @contextmanager
    def _sent_elsewhere(self, told: httpx.Headers, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """A file as the store's own server sends it, with the ETag that the API told: no key of ours goes there.

        The API has compared If-Range already; the store names its files otherwise.
        """
        wanted = {name: value for name, value in headers.items() if name.lower() != "if-range"}
        address = told["location"]
        with httpx.stream(
            "GET", address, headers={**wanted, "Accept-Encoding": "identity"}, timeout=self._http.timeout
        ) as response:
            if not response.is_success:
                response.read()
                raise ApiDown(
                    f"The store at {urlsplit(address).netloc} answered {response.status_code} where the API has sent us."
                )
            response.headers["etag"] = told["etag"]
            yield response

    def _link(self, path: str) -> Link:
        """Signed addresses, made absolute so that a browser can follow them."""
        link = self._post(path, Link, None)
        base = self.public_url + "/"
        files = {name: urljoin(base, url) for name, url in link.file_urls.items()}
        return link.model_copy(update={"archive_url": urljoin(base, link.archive_url), "file_urls": files})

    def _call(self, method: str, path: str, kind: type[T], *, tries: int, **sent: Any) -> T:
        finding = unsendable(sent.get("json"))
        if finding is not None:
            raise Invalid(finding.message, [finding])
        for last_try in (*[False] * (tries - 1), True):
            try:
                response = self._http.request(method, self.base_url + path, **sent)
                break
            except httpx.TransportError as error:
                if last_try:
                    raise ApiDown(f"Cannot reach the API at {self.base_url} ({reason_of(error)}).") from None
        # /readyz answers 503 with a body that says what is degraded: that is an answer, not a failure.
        if response.is_success or (response.status_code == 503 and kind is Health):
            return _parsed(response, kind)
        raise error_of(response)


def _parsed(response: httpx.Response, kind: type[T]) -> T:
    try:
        return TypeAdapter(kind).validate_json(response.content, context=STORED)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the answer"
        raise ServerFault(
            f"The API's answer to {response.request.method} {response.request.url.path} does not fit this dashboard: "
            f"{where}: {first['msg']}. Are both of the same version?"
        ) from None


def error_of(response: httpx.Response) -> ApiError:
    try:
        problem = Problem.model_validate_json(response.content)
        detail, findings = problem.detail or problem.title, problem.errors
    except ValidationError:
        detail, findings = f"The API answered {response.status_code} {response.reason_phrase}.", []
    if response.status_code == 401:
        return SignedOut(detail)
    if response.status_code == 403:
        return Forbidden(detail)
    if response.status_code == 404:
        return NotFound(detail)
    if response.status_code in (409, 412):
        return Conflict(detail)
    if response.status_code == 422:
        return Invalid(detail, findings)
    if response.status_code >= 500:
        return ServerFault(detail)
    return ApiError(detail)


def reason_of(error: httpx.TransportError) -> str:
    return "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
