"""The OpenAPI document is written down, names what it speaks of, and shows an example of what people write."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from backend.app import create_app
from backend.openapi import document_text
from backend.openapi_examples import REQUESTS, RESPONSES, as_json
from backend.settings import Settings

_FILE = Path(__file__).parents[2] / "docs" / "openapi.json"
# The document of a schema is a JSON schema, and a spec to be validated may be anything: neither has a model.
_WITHOUT_MODEL = {"get_spec_schema", "get_analysis_schema", "validate_spec", "validate_question"}


@pytest.fixture
def operations(home: Path) -> list[dict[str, Any]]:
    document = create_app(Settings(home=home)).openapi()
    return [operation for path in document["paths"].values() for operation in path.values()]


@pytest.mark.usefixtures("home")
def test_the_document_is_the_one_that_is_written_down() -> None:
    remedy = "the API has changed: look at the difference, then `python -m backend.openapi > docs/openapi.json`"
    assert document_text() == _FILE.read_text(), remedy


def _is_named(schema: dict[str, Any]) -> bool:
    """Whether a schema is a model, a list of a model, or one that may be left out."""
    if schema.get("type") == "array":
        return _is_named(schema["items"])
    if "anyOf" in schema:
        return all(one == {"type": "null"} or _is_named(one) for one in schema["anyOf"])
    return "$ref" in schema


def test_everything_that_is_sent_has_a_name(operations: list[dict[str, Any]]) -> None:
    for operation in operations:
        if operation["operationId"] in _WITHOUT_MODEL:
            continue
        sent = [operation["requestBody"]] if "requestBody" in operation else []
        for content in (*sent, *operation["responses"].values()):
            for kind, media in content.get("content", {}).items():
                if kind.endswith("json"):
                    assert _is_named(media["schema"]), (operation["operationId"], media["schema"])


def test_every_operation_has_a_tag_a_summary_and_a_description(operations: list[dict[str, Any]]) -> None:
    for operation in operations:
        assert operation["tags"]
        assert operation["summary"]
        assert operation["description"].endswith("."), operation["operationId"]


def test_what_people_write_and_are_answered_has_a_valid_example(home: Path) -> None:
    routes = [route for route in create_app(Settings(home=home)).routes if isinstance(route, APIRoute)]
    changing = {route.operation_id: route for route in routes if route.methods - {"GET"}}
    assert set(RESPONSES) == set(changing)
    assert set(REQUESTS) == {name for name, route in changing.items() if route.body_field is not None}
    for name, route in changing.items():
        TypeAdapter(route.response_model).validate_python(as_json(RESPONSES[name]))
        if route.body_field is not None:
            TypeAdapter(route.body_field.field_info.annotation).validate_python(as_json(REQUESTS[name]))
