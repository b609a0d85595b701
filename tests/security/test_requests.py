"""Hostile requests: each gets a problem in one sentence, opens nothing, changes nothing, and never makes the API fail."""

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.routing import Mount

from backend.database import Database
from backend.request_bodies import FILE_TYPE, TAKES_FILE
from backend.settings import Settings
from tests.backend.checkpoints import FILES, attempt_folder, commit_checkpoint
from tests.backend.recorded import stored_counts

Document = dict[str, Any]
JSON = {"Content-Type": "application/json"}
PASSWD = "root:"


def assert_problem(response: Any, settings: Settings, *statuses: int) -> None:
    """One sentence as RFC 9457 wants it, with one of the statuses and nothing of this machine."""
    assert response.status_code in statuses, (response.status_code, response.text[:300])
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert {"type", "title", "status", "detail", "instance"} <= problem.keys()
    assert problem["status"] == response.status_code
    for inner in (str(settings.home), "Traceback", "sqlalchemy", "site-packages", PASSWD):
        assert inner not in response.text


@pytest.fixture
def checkpoint_id(settings: Settings, database: Database, run_id: str) -> str:
    return commit_checkpoint(database, settings.run_dir, run_id)


_ELSEWHERE = [
    "../../../../../../../../etc/passwd",
    "/etc/passwd",
    "//proc/self/root/etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "%252e%252e%252fetc%252fpasswd",
    "..%c0%af..%c0%afetc/passwd",
    "..\\..\\etc\\passwd",
    "\\\\evil.example\\share\\x",
    "config.json%00.txt",
    "～/config.json",
    "a/" * 500,
    "a" * 3000,
]


@pytest.mark.attack(1)
@pytest.mark.parametrize("name", _ELSEWHERE)
@pytest.mark.parametrize("place", ["checkpoints/{id}/files/{name}", "download/{id}/files/{name}?expires=9&signature=0"])
def test_a_path_in_place_of_a_name_opens_nothing(
    client: TestClient, settings: Settings, checkpoint_id: str, place: str, name: str
) -> None:
    for written in (quote(name, safe="%/"), quote(name, safe="")):
        response = client.get("/api/v1/" + place.format(id=checkpoint_id, name=written))
        assert_problem(response, settings, 403, 404, 422)


@pytest.mark.attack(2)
@pytest.mark.parametrize("name", ["file:///etc/passwd", "http:///%23/../../etc/passwd", "config.json;x", "s3://b/c"])
def test_an_address_in_place_of_a_name_opens_nothing(
    client: TestClient, settings: Settings, checkpoint_id: str, name: str
) -> None:
    for written in (name, quote(name, safe="")):
        assert_problem(client.get(f"/api/v1/checkpoints/{checkpoint_id}/files/{written}"), settings, 404, 422)
    # A query or a fragment is no part of a name.
    known = client.get(f"/api/v1/checkpoints/{checkpoint_id}/files/config.json?path=/etc/passwd#/../../etc/passwd")
    assert known.content == FILES["config.json"]


@pytest.mark.attack(2, 6, 10)
@pytest.mark.parametrize(
    "field", ["artifact_uri", "artifact_root", "output_dir", "trust_remote_code", "url", "endpoint"]
)
def test_no_request_says_where_files_lie_or_that_code_may_run(
    client: TestClient, settings: Settings, database: Database, base: Document, field: str
) -> None:
    value, before = "file:///etc", stored_counts(database)
    at_model = {**base, "student": {**base["student"], field: value}}
    for body in (
        {"name": "q", "base": base, field: value},
        {"name": "q", "base": at_model},
        {"name": "q", "base": base | {field: value}},
    ):
        response = client.post("/api/v1/experiments", json=body)
        assert_problem(response, settings, 422)
        assert response.json()["errors"][0]["field"].endswith(field)
    variant = {"name": "v", "changes": {f"student.{field}": value}}
    assert_problem(
        client.post("/api/v1/experiments", json={"name": "q", "base": base, "variants": [variant]}), settings, 422
    )
    assert stored_counts(database) == before


@pytest.mark.attack(3)
@pytest.mark.parametrize("kind", ["link", "dangling link", "linked folder", "hard link", "pipe", "folder"])
def test_what_is_no_plain_file_of_the_checkpoint_is_not_sent(
    client: TestClient, settings: Settings, run_id: str, checkpoint_id: str, kind: str, tmp_path: Path
) -> None:
    folder = attempt_folder(settings.run_dir, run_id) / "checkpoints" / "step-20"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "state.json").write_text("secret of another")
    path = folder / "trainer" / "state.json"
    path.unlink()
    match kind:
        case "link":
            path.symlink_to(outside / "state.json")
        case "dangling link":
            path.symlink_to(outside / "none")
        case "linked folder":
            (folder / "trainer" / "empty.json").unlink()
            (folder / "trainer").rmdir()
            (folder / "trainer").symlink_to(outside)
        case "hard link":
            os.link(outside / "state.json", path)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
    for part in ("files/trainer/state.json", "archive"):
        assert_problem(client.get(f"/api/v1/checkpoints/{checkpoint_id}/{part}"), settings, 404, 410)


@pytest.mark.attack(11, 12)
@pytest.mark.parametrize(
    "kind",
    [
        "application/zip",
        "application/x-tar",
        "application/gzip",
        "multipart/form-data; boundary=x",
        "application/octet-stream",
    ],
)
def test_nothing_takes_archives_or_uploads(
    client: TestClient, settings: Settings, database: Database, kind: str
) -> None:
    upload = b'--x\r\nContent-Disposition: form-data; name="f"; filename="/etc/x"\r\n\r\nPK\x03\x04\r\n--x--\r\n'
    document = client.get("/api/v1/openapi.json").json()
    takes_body, before = 0, stored_counts(database)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if method == "get":
                continue
            takes_file = operation["operationId"] in TAKES_FILE
            content = {FILE_TYPE} if takes_file else {"application/json"}
            assert set(operation.get("requestBody", {}).get("content", {})) <= content
            takes_body += 1
            # A file of prompts is lines or a table under a name of its own: an archive is neither.
            named = (
                {"name": "p.jsonl", "prompt": "q"}
                if operation["operationId"] == "upload_prompts"
                else {"name": "p.zip"}
            )
            response = client.request(
                method,
                path.replace("{", "").replace("}", ""),
                content=upload,
                headers={"Content-Type": kind},
                params=named if takes_file else None,
            )
            assert_problem(response, settings, 422 if takes_file and kind == FILE_TYPE else 415)
    assert list(settings.home.glob("prompts/*")) == []
    assert takes_body >= 15
    assert stored_counts(database) == before


@pytest.mark.attack(19)
def test_no_folder_is_served(client: TestClient, settings: Settings) -> None:
    assert [route for route in client.app.routes if isinstance(route, Mount)] == []  # type: ignore[attr-defined]
    for path in (
        "/static/..%2f..%2fetc%2fpasswd",
        "/static/%5C%5Cevil.example%5Cx",
        "/app/static/x",
        "/docs/../etc/passwd",
    ):
        assert_problem(client.get(path), settings, 404)


_NO_JSON = [
    (b"\xff\xfe{}", "not UTF-8"),
    (b'{"a": "\xed\xa0\x80"}', "a surrogate in UTF-8"),
    (b"[" * 500_000, "depth"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "depth of objects"),
    (b'{"seed": 1e400}', "infinite"),
    (b'{"num_steps": NaN}', "NaN"),
    (b'{"num_steps": -Infinity}', "minus infinity"),
    (b"1" * 900_000, "digits"),
    (b'{"name": "a", "name": "b"}', "a key twice"),
    (b"{" + b",".join(b'"k%d":0' % i for i in range(90_000)) + b"}", "90,000 fields"),
    (b'{"name": "\\ud800"}', "a lone surrogate"),
    (b'{"\\ud800": 1}', "a lone surrogate as key"),
    (b'{"name": "\\u0000"}', "NUL"),
    (b"{} {}", "two documents"),
    (b"'{}'", "quotes"),
    (b"", "nothing"),
]


@pytest.mark.attack(25)
@pytest.mark.parametrize("body", [body for body, _ in _NO_JSON], ids=[what for _, what in _NO_JSON])
def test_a_body_that_is_no_sound_document_is_refused(
    client: TestClient, settings: Settings, database: Database, run_id: str, body: bytes
) -> None:
    before = stored_counts(database)
    for path in ("experiments", "preflights", "analyses", "estimate", "keys", f"runs/{run_id}/clone"):
        response = client.post(f"/api/v1/{path}", content=body, headers=JSON)
        if body == b"" and path.endswith("clone"):
            continue  # its body may be left out
        assert_problem(response, settings, 422)
    assert client.post("/api/v1/spec/validate", content=body, headers=JSON).status_code in (200, 422)
    if body:
        assert stored_counts(database) == before


_NAMES = [
    "__proto__",
    "constructor",
    "../x",
    "\u202egnp.exe",
    "🦊" * 128,
    "<img src=x onerror=alert(1)>",
    "'; DROP TABLE runs;--",
]


@pytest.mark.attack(26)
@pytest.mark.parametrize("name", _NAMES)
def test_an_odd_name_is_text(client: TestClient, base: Document, name: str) -> None:
    body = {"name": name, "base": base, "variants": [{"name": name, "note": name}]}
    created = client.post("/api/v1/experiments", json=body)
    assert created.status_code == 201
    (run,) = client.get(f"/api/v1/experiments/{created.json()['id']}/runs").json()
    assert (created.json()["name"], run["name"], run["note"]) == (name, name, name)
    assert client.get(f"/api/v1/runs/{run['id']}/metrics", params={"keys": name}).json() == []


@pytest.mark.attack(26)
@pytest.mark.parametrize("name", ["", "x" * 129, "x" * 10_000, "a\nb", "\x1b[31m"])
def test_a_name_that_is_too_long_or_has_control_characters_is_refused(
    client: TestClient, settings: Settings, base: Document, name: str
) -> None:
    for body in (
        {"name": name, "base": base},
        {"name": "q", "base": base | {"name": name}},
        {"name": "q", "base": base, "variants": [{"name": name}]},
    ):
        assert_problem(client.post("/api/v1/experiments", json=body), settings, 422)
    assert_problem(client.post("/api/v1/keys", json={"name": name}), settings, 422)


_SQL = [
    "'",
    '"',
    "' OR '1'='1",
    "1; DROP TABLE runs; --",
    "') UNION SELECT key FROM api_keys --",
    "%' AND sleep(9)#",
    "\\",
    "*/1",
]


@pytest.mark.attack(27)
@pytest.mark.parametrize("sql", _SQL)
def test_sql_in_any_parameter_finds_nothing_and_changes_nothing(
    client: TestClient, database: Database, run_id: str, sql: str
) -> None:
    before = stored_counts(database)
    tried = 0
    for route in client.app.routes:  # type: ignore[attr-defined]
        if not isinstance(route, APIRoute) or "GET" not in route.methods or route.path.endswith("/stream"):
            continue
        names = {name: run_id if name == "run_id" else sql for name in route.param_convertors}
        address = route.path.replace(":path", "").format(
            **{name: quote(value, safe="") for name, value in names.items()}
        )
        for parameter in [field.alias for field in route.dependant.query_params]:
            response = client.get(address, params={parameter: sql})
            assert response.status_code in (200, 403, 404, 422), (address, parameter, response.text)
            if response.status_code == 200:
                assert all(sql in name for name in _names_in(response.json())), (address, parameter)
            tried += 1
        assert client.get(address).status_code < 500
    assert tried >= 15
    assert stored_counts(database) == before


def _names_in(answer: Any) -> list[str]:
    """What was found, which may only be what is really called so."""
    found = answer.get("items") if isinstance(answer, dict) else answer
    return [one.get("name", "") for one in found]


def test_the_problem_that_these_tests_look_for_has_no_inner_path(settings: Settings) -> None:
    class Told:
        status_code, headers = 422, {"content-type": "application/problem+json"}
        text = json.dumps({"type": "", "title": "", "status": 422, "detail": str(settings.home), "instance": ""})

        def json(self) -> Any:
            return json.loads(self.text)

    with pytest.raises(AssertionError):
        assert_problem(Told(), settings, 422)
