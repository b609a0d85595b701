"""Bad input gets one sentence per field, the same everywhere, and leaves nothing behind."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from backend.database import Database
from engine.findings import findings_of
from engine.spec import RunSpec
from tests import databases
from tests.backend.recorded import stored_counts

Document = dict[str, Any]
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def database_url(home: Path) -> str:
    """SQLite alone: what is refused here never reaches a database."""
    return databases.sqlite_copy(home)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prefix": {"kind": "constant", "tokens": 0}}, "prefix.tokens"),
        ({"num_steps": 0, "nonsense": 1}, "num_steps"),
        ({"name": ""}, "name"),
        ({"max_completion_tokens": 4}, "prefix.tokens"),
        ({"prefix": {"kind": "full"}, "anchoring": {"kind": "every_nth_step", "n": 2}}, "anchoring"),
    ],
)
def test_a_bad_base_is_refused_in_the_words_of_the_spec(
    client: TestClient, database: Database, base: Document, changes: Document, field: str
) -> None:
    bad = base | changes
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(bad)
    expected = [finding.model_dump() for finding in findings_of(caught.value, bad)]
    assert expected[0]["field"] == field

    assert client.post("/api/v1/spec/validate", json=bad).json() == expected
    bodies: dict[str, Document] = {
        "/api/v1/experiments": {"name": "one", "base": bad},
        "/api/v1/estimate": bad,
        "/api/v1/preflights": bad,
    }
    for path, body in bodies.items():
        response = client.post(path, json=body)
        assert response.status_code == 422, path
        assert response.json()["errors"] == expected, path
    assert stored_counts(database) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"": 1}, "v."),
        ({"prefix.kind.x": 1}, "v.prefix"),
        ({"name.first": 1}, "v.name"),
        ({"seed": 3}, "v.seed"),
        ({"a.b.c": {"d": [1]}}, "v.a"),
        ({"\ud800": 1}, "v."),
        ({"num_steps": None}, "v.num_steps"),
    ],
)
@pytest.mark.attack(25)
def test_odd_changes_are_findings(client: TestClient, base: Document, changes: Document, field: str) -> None:
    body = {"name": "q", "base": base, "variants": [{"name": "v", "changes": changes}]}
    # json.dumps escapes the lone surrogate, which no UTF-8 body could hold.
    response = client.post("/api/v1/experiments", content=json.dumps(body), headers=JSON)
    assert response.status_code == 422, response.text
    assert response.json()["errors"][0]["field"] == field


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "variants has 2 called 'a'; rename them."),
        ({"seeds": [1, 1]}, "seeds has 1 2 times; name each seed once."),
        ({"seeds": [-1]}, "seed is -1 but must be at least 0; raise it."),
        ({"seeds": []}, "seeds"),
        (
            {"variants": [{"name": str(i)} for i in range(101)], "seeds": list(range(10))},
            "variants and seeds make 1010 runs, but an experiment has at most 1000; use fewer seeds.",
        ),
    ],
)
def test_experiments_that_contradict_themselves_are_refused(
    client: TestClient, database: Database, base: Document, change: Document, sentence: str
) -> None:
    response = client.post("/api/v1/experiments", json={"name": "q", "base": base, **change})
    assert response.status_code == 422
    assert response.json()["errors"][0]["message"].startswith(sentence)
    assert stored_counts(database) == (0, 0)


_NO_DOCUMENTS = [
    (b"", "has no body"),
    (b"{", "is not JSON"),
    (b"\xff\xfe", "is not UTF-8 at byte 0"),
    (b"[" * 100_000, "deeper than 32 levels"),
    (b"1" * 10_000, "is not JSON"),
    (b"null", "has no body"),
    (b'"text"', "The spec"),
    (b'{"name": "\\u0000"}', "NUL"),
    (b'{"seed": 1e400}', "the number 1e400 is too large"),
    (b'{"seed": NaN, "name": Infinity}', "NaN is no number of JSON"),
]


def test_bodies_that_are_no_documents_are_refused_in_a_sentence(client: TestClient) -> None:
    for content, words in _NO_DOCUMENTS:
        for path in ("/api/v1/estimate", "/api/v1/experiments", "/api/v1/preflights"):
            response = client.post(path, content=content, headers=JSON)
            assert response.status_code in (400, 422), (path, content)
            assert response.headers["content-type"] == "application/problem+json"
            if path == "/api/v1/estimate":
                assert words in response.text
