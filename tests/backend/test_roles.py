"""Every address is shut unless a role is declared for it, and opens to that role alone."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from backend.app import create_app
from backend.database import Database
from backend.key_format import new_key
from backend.locked_route import LockedRoute, locked_router
from backend.roles import need_of
from backend.settings import Settings
from tests import databases
from tests.access import key_of, with_key
from tests.backend.conftest import ADDRESS

# The document describes a public program and the page shows it; neither knows anything of this installation.
_DESCRIBING = {"/api/v1/openapi.json", "/docs", "/docs/oauth2-redirect"}
_ROOT = Path(__file__).parents[2]


@pytest.fixture
def database_url(home: Path) -> str:
    """SQLite alone: who may enter does not depend on it."""
    return databases.sqlite_copy(home)


@pytest.fixture
def stranger(settings: Settings) -> Iterator[TestClient]:
    """The API, asked without any credential."""
    with TestClient(create_app(settings), base_url=ADDRESS, raise_server_exceptions=False) as opened:
        yield opened


def _operations(client: TestClient) -> list[tuple[str, str, str | None]]:
    """Method, path and what it needs, of every route that the application has."""
    found = []
    for route in client.app.routes:  # type: ignore[attr-defined]
        if not isinstance(route, APIRoute):
            assert route.path in _DESCRIBING, "only routes of FastAPI's own kind pass the dependency that asks"
            continue
        assert isinstance(route, LockedRoute), f"{route.path} is not asked who it is before its body is read"
        path = route.path.replace("{name:path}", "x").replace("{", "").replace("}", "")
        found += [(method, path, need_of(route.operation_id)) for method in route.methods]
    return found


def _status(client: TestClient, method: str, path: str, headers: dict[str, str]) -> int:
    # A body that nothing takes: who may not ask at all is told so before anybody looks at it.
    json_type = {"Content-Type": "application/json"}
    return client.request(
        method, path, headers=headers | json_type, content="{" if method != "GET" else None
    ).status_code


@pytest.mark.attack(16)
def test_every_route_asks_who_it_is_and_whether_they_may(stranger: TestClient, database: Database) -> None:
    operations = _operations(stranger)
    assert len(operations) >= 40
    viewer, operator, admin = (key_of(database, role) for role in ("viewer", "operator", "admin"))  # type: ignore[arg-type]
    operator_of_all, admin_of_all = key_of(database, "operator", "*"), key_of(database, "admin", "*")
    for method, path, need in operations:
        where = f"{method} {path}"
        assert need is not None, f"{where} has no role in backend/roles.py"
        strangers = {_status(stranger, method, path, headers) for headers in ({}, with_key(new_key().text))}
        if need == "open":
            assert strangers == {200}, where
            continue
        if need == "signature":
            assert strangers == {422}, where
            continue
        assert strangers == {401}, where
        below = {
            "viewer": [],
            "operator": [viewer],
            "admin": [viewer, operator],
            "admin of all projects": [viewer, operator, operator_of_all, admin],
        }[need]
        assert [_status(stranger, method, path, with_key(key)) for key in below] == [403] * len(below), where
        enough = {"viewer": viewer, "operator": operator, "admin": admin, "admin of all projects": admin_of_all}[need]
        assert _status(stranger, method, path, with_key(enough)) not in (401, 403), where


def test_the_open_addresses_are_these(stranger: TestClient) -> None:
    needs = {path: need for _, path, need in _operations(stranger) if need in ("open", "signature")}
    assert sorted(path for path, need in needs.items() if need == "open") == ["/livez", "/readyz", "/version"]
    assert all(path.startswith("/api/v1/download/") for path, need in needs.items() if need == "signature")


@pytest.mark.attack(16)
def test_a_route_without_a_declared_role_is_refused_to_everybody(settings: Settings, database: Database) -> None:
    app = create_app(settings)
    forgotten, unlocked = locked_router(), APIRouter()

    @forgotten.get("/forgotten", operation_id="forgotten")
    @forgotten.post("/nameless")
    @unlocked.get("/unlocked", operation_id="list_runs")
    def _tell() -> str:
        return "secret"

    app.include_router(forgotten, prefix="/api/v1")
    app.include_router(unlocked, prefix="/api/v1")
    with TestClient(app, base_url=ADDRESS) as client:
        for headers in ({}, with_key(key_of(database, "admin", "*"))):
            refused = client.get("/api/v1/unlocked", headers=headers)
            assert refused.status_code == 403
            assert "has no lock" in refused.json()["detail"]
        for method, path in (("GET", "/api/v1/forgotten"), ("POST", "/api/v1/nameless")):
            assert client.request(method, path).status_code == 401
            response = client.request(method, path, headers=with_key(key_of(database, "admin", "*")))
            assert response.status_code == 403
            assert "No role is declared" in response.json()["detail"]
            assert "secret" not in response.text


@pytest.mark.attack(15)
def test_a_path_that_only_looks_open_is_shut(stranger: TestClient) -> None:
    for path in ("/api/v1/runs?x=/livez", "/api/v1/runs#/livez", "//livez/../api/v1/runs", "/livez/api/v1/runs"):
        assert stranger.get(path).status_code in (401, 404), path
    assert stranger.get("/api/v1/runs", headers={"Host": "127.0.0.1/livez?"}).status_code == 421


def test_the_documented_table_is_the_one_in_the_code() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "backend.roles"], capture_output=True, text=True, check=True, cwd=_ROOT
    )
    assert printed.stdout.strip() in (_ROOT / "docs" / "security.md").read_text()


def test_the_document_says_which_operations_need_a_credential(stranger: TestClient) -> None:
    document: Any = stranger.get("/api/v1/openapi.json").json()
    assert document["paths"]["/api/v1/runs"]["get"]["security"]
    assert "401" in document["paths"]["/api/v1/runs"]["get"]["responses"]
