"""The OpenAPI document of the API. `python -m backend.openapi` prints it as docs/openapi.json has it."""

import json
from typing import Any

from fastapi import FastAPI

from backend.limits import Limits
from backend.openapi_examples import REQUESTS, RESPONSES, as_json
from backend.roles import need_of
from backend.schemas import Problem


def complete_document(app: FastAPI, limits: Limits) -> None:
    """Put errors, the size of pages and examples into the document; as a model of each route errors would be built 200 times."""
    document_of = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = document_of()
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] |= schema.pop("$defs") | {"Problem": schema}
        for path in document["paths"].values():
            for operation in path.values():
                _complete_operation(operation, limits)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _complete_operation(operation: dict[str, Any], limits: Limits) -> None:
    for parameter in operation.get("parameters", ()):
        if parameter["name"] == "limit":
            parameter["schema"]["maximum"] = limits.page_items
    name = operation["operationId"]
    if need_of(name) in ("open", "signature"):
        del operation["security"]
    if name in REQUESTS:
        operation["requestBody"]["content"]["application/json"]["example"] = as_json(REQUESTS[name])
    if name in RESPONSES:
        done = next(response for status, response in operation["responses"].items() if status in ("200", "201"))
        done["content"]["application/json"]["example"] = as_json(RESPONSES[name])


def document_text() -> str:
    """The document with the default limits, as the file has it."""
    from backend.app import create_app

    return json.dumps(create_app().openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(document_text(), end="")
