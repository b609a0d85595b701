"""Requests that cannot be fulfilled: one sentence with the value, the limit and what to do. No HTTP in here.

Workers refuse with the same words, and FastAPI would cost each of their processes 10 MB.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from backend.schemas import ExperimentCreate
from engine.findings import Finding, findings_of
from engine.spec import RunSpec


class Refusal(Exception):
    """A request that cannot be fulfilled, with the sentence that says why."""

    def __init__(
        self, status: int, detail: str, errors: Sequence[Finding] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})


def not_found(noun: str, id: str) -> Refusal:
    """The refusal of an id that does not exist, or no longer."""
    return Refusal(404, f"There is no {noun} {id!r}; it may have been removed, see the list.")


def invalid(findings: Sequence[Finding]) -> Refusal:
    """The refusal of a body with these findings."""
    more = f" ({len(findings) - 1} more in errors)" if len(findings) > 1 else ""
    return Refusal(422, findings[0].message + more, findings)


def findings_in(document: object, kind: Any) -> list[Finding]:
    """What is wrong with a document that should be of this kind; the base spec of an experiment is judged by itself."""
    base: list[Finding] = []
    if kind is ExperimentCreate and isinstance(document, Mapping) and isinstance(document.get("base"), Mapping):
        # So that its findings lie at the fields of a spec and read as they do everywhere else.
        base = findings_in(document["base"], RunSpec)
    try:
        TypeAdapter(kind).validate_python(document)
    except ValidationError as error:
        found = findings_of(error, document)
        return base + [one for one in found if one not in base and not one.field.startswith("base.")]
    return base
