"""Web pages cannot drive the API, large bodies do not reach it, and every refusal is a problem."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr, ValidationError

from backend.limits import Limits
from backend.settings import Settings
from tests import databases

JSON = {"Content-Type": "application/json"}
MAX_BODY_BYTES = Limits().body_bytes
Document = dict[str, Any]


@pytest.fixture
def database_url(home: Path) -> str:
    """SQLite alone: what is refused here never reaches a database."""
    return databases.sqlite_copy(home)


def _is_problem(response: Any, status: int) -> bool:
    problem = response.json()
    is_complete = problem["status"] == status and problem["detail"].endswith(".") and problem["title"]
    named = problem["instance"] == f"urn:uuid:{response.headers['x-request-id']}"
    return bool(response.status_code == status and is_complete and named)


@pytest.mark.attack(14, 15)
def test_only_known_names_reach_any_route(client: TestClient) -> None:
    paths = [route.path for route in client.app.routes if hasattr(route, "methods")]  # type: ignore[attr-defined]
    assert len(paths) >= 25
    for path in paths:
        for host in ("evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "localhost/x", "a b", ""):
            response = client.get(path, headers={"Host": host})
            assert _is_problem(response, 421), (path, host)
    for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"):
        assert client.get("/livez", headers={"Host": host}).status_code == 200, host


@pytest.mark.attack(14)
def test_pages_of_other_origins_change_nothing(client: TestClient, base: Document) -> None:
    body = {"name": "q", "base": base}
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8000"):
        assert _is_problem(client.post("/api/v1/experiments", json=body, headers={"Origin": origin}), 403), origin
    same = client.post("/api/v1/experiments", json=body, headers={"Origin": "http://127.0.0.1:8000"})
    assert same.status_code == 201
    read = client.get("/api/v1/runs", headers={"Origin": "https://evil.example"})
    assert read.status_code == 200
    assert "access-control-allow-origin" not in read.headers


@pytest.mark.attack(12, 14)
def test_forms_change_nothing(client: TestClient) -> None:
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
    ):
        response = client.post("/api/v1/experiments", content=b"{}", headers={"Content-Type": kind})
        assert _is_problem(response, 415), kind
    assert _is_problem(client.post("/api/v1/experiments", content=b"{}"), 415)


@pytest.mark.attack(25)
def test_bodies_are_limited_to_one_mebibyte(client: TestClient) -> None:
    padding = b" " * (MAX_BODY_BYTES - 2)
    assert client.post("/api/v1/spec/validate", content=b"{}" + padding, headers=JSON).status_code == 200
    assert _is_problem(client.post("/api/v1/spec/validate", content=b"{} " + padding, headers=JSON), 413)


def test_unknown_addresses_methods_and_nul_are_problems(client: TestClient) -> None:
    assert _is_problem(client.get("/api/v1/nothing"), 404)
    assert _is_problem(client.put("/api/v1/runs", json={}), 405)
    assert _is_problem(client.request("TRACE", "/api/v1/runs"), 405)
    assert _is_problem(client.get("/api/v1/runs?search=%00"), 422)
    assert _is_problem(client.get("/api/v1/runs/%00"), 422)


def test_a_fault_tells_nothing_but_its_id(client: TestClient) -> None:
    client.app.state.database = None  # type: ignore[attr-defined]
    response = client.get("/api/v1/runs")
    assert _is_problem(response, 500)
    assert "NoneType" not in response.text
    assert "Traceback" not in response.text


def test_only_a_loopback_address_may_have_a_local_token(home: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ValidationError, match=r"INCIPIT_LOCAL_TOKEN is for a stack on one machine; unset it, or"):
            Settings(home=home, host=host, local_token=SecretStr("x"))
        assert Settings(home=home, host=host).host == host
