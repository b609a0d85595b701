"""Every limit lets the last one through and refuses the next, in one sentence with value, limit and fix."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select, text

from backend.app import create_app
from backend.database import Database
from backend.limits import Limits
from backend.settings import Settings
from backend.tables import Run
from tests import databases
from tests.access import SIGNED_IN
from tests.backend.checkpoints import commit_checkpoint
from tests.backend.conftest import ADDRESS
from tests.backend.recorded import stored_counts

Document = dict[str, Any]
Opener = Callable[..., TestClient]
_ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite"])
def database_url(request: pytest.FixtureRequest, home: Path) -> Iterator[str]:
    """SQLite, unless a test asks for the other: most limits never reach a database."""
    if request.param == "sqlite":
        yield databases.sqlite_copy(home)
    else:
        with databases.postgres_copy() as url:
            yield url


@pytest.fixture
def opened(settings: Settings) -> Iterator[Opener]:
    """Opens an API with other limits than the usual ones."""
    with ExitStack() as stack:

        def with_limits(**limits: float) -> TestClient:
            app = create_app(settings.model_copy(update={"limits": Limits.model_validate(limits)}))
            client = TestClient(app, base_url=ADDRESS, headers=SIGNED_IN, raise_server_exceptions=False)
            return stack.enter_context(client)

        yield with_limits


def detail(response: Any, status: int) -> str:
    """The sentence of a problem."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    sentence: str = response.json()["detail"]
    assert sentence.endswith(".")
    return sentence


def test_the_documented_table_is_the_one_in_the_code() -> None:
    command = [sys.executable, "-m", "backend.limits"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=_ROOT)
    remedy = "print it with `python -m backend.limits` and put it into docs/security.md"
    assert printed.stdout.strip() in (_ROOT / "docs" / "security.md").read_text(), remedy


def test_each_limit_is_a_setting(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCIPIT_LIMITS__PAGE_ITEMS", "5")
    limits = Settings(home=home).limits
    assert limits == Limits(page_items=5)


def test_a_spec_has_at_most_64_kib(client: TestClient) -> None:
    most = Limits().spec_bytes
    assert most == 64 * 1024
    for path, wrap in (("spec/validate", "{}"), ("experiments", "base"), ("analyses", "run"), ("estimate", "{}")):
        for extra, is_refused in ((0, False), (1, True)):
            spec = {"x": "a" * (most - len('{"x":""}') + extra)}
            response = client.post(f"/api/v1/{path}", json=spec if wrap == "{}" else {wrap: spec})
            told = f"The spec has {most + 1} bytes as JSON but may have {most}; shorten its texts and lists."
            assert (told in response.text) == is_refused, path


def test_bodies_have_at_most_32_levels(client: TestClient) -> None:
    def nested(levels: int, opening: str, closing: str) -> str:
        return opening * levels + "1" + closing * levels

    for opening, closing in (("[", "]"), ('{"a":', "}")):
        for levels, status in ((32, 200), (33, 422)):
            response = client.post(
                "/api/v1/spec/validate",
                content=nested(levels, opening, closing),
                headers={"Content-Type": "application/json"},
            )
            assert response.status_code == status
    assert detail(response, 422) == "The request's body is nested deeper than 32 levels; make it flatter."


def test_bodies_have_at_most_20000_values(client: TestClient) -> None:
    assert client.post("/api/v1/spec/validate", json=[0] * 19_999).status_code == 200
    refused = client.post("/api/v1/spec/validate", json=[0] * 20_000)
    assert detail(refused, 422).startswith("The request's body holds more than 20000 values; send less at once")


def test_pages_have_at_most_200_entries(client: TestClient, run_id: str) -> None:
    document = client.get("/api/v1/openapi.json").json()
    tried = 0
    for path, operations in document["paths"].items():
        for parameter in operations.get("get", {}).get("parameters", ()):
            if parameter["name"] == "limit":
                assert parameter["schema"]["maximum"] == 200
                address = path.replace("{run_id}", run_id)
                assert client.get(address, params={"limit": 200}).status_code == 200
                refused = client.get(address, params={"limit": 201})
                assert detail(refused, 422) == "limit is 201 but must be at most 200; lower it."
                tried += 1
    assert tried == 12


def test_a_page_is_as_long_as_the_setting_lets_it(opened: Opener) -> None:
    client = opened(page_items=1)
    assert client.get("/api/v1/runs").status_code == 200
    assert detail(client.get("/api/v1/runs", params={"limit": 2}), 422).startswith("limit is 2 but must be at most 1")


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_one_person_has_so_many_runs_in_the_queue_and_no_more(
    opened: Opener, database: Database, base: Document
) -> None:
    client = opened(queued_runs=3)
    body = {"name": "q", "base": base, "seeds": [0, 1]}
    assert client.post("/api/v1/experiments", json=body).status_code == 201
    refused = client.post("/api/v1/experiments", json=body)
    assert detail(refused, 409) == (
        "You have 2 runs in the queue and this adds 2, but at most 3 may wait; wait until some have started, or cancel some."
    )
    runs = client.get("/api/v1/runs").json()["items"]
    assert client.post(f"/api/v1/runs/{runs[0]['id']}/clone").status_code == 201
    assert detail(client.post(f"/api/v1/runs/{runs[0]['id']}/clone"), 409).startswith("You have 3 runs in the queue")
    assert client.post(f"/api/v1/runs/{runs[0]['id']}/cancel").status_code == 200
    assert client.post(f"/api/v1/runs/{runs[0]['id']}/clone").status_code == 201
    assert stored_counts(database) == (1, 4)
    assert Limits().queued_runs == 1000


def test_what_is_not_answered_in_time_is_given_up_and_ends_by_itself(
    opened: Opener, database: Database, base: Document
) -> None:
    client = opened(request_seconds=0.5)
    body = {"name": "q", "base": base}
    assert client.post("/api/v1/experiments", json=body).status_code == 201
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = version_num"))  # holds the only write lock
        began = time.monotonic()
        refused = client.post("/api/v1/experiments", json=body)
        assert time.monotonic() - began < 5
        assert refused.headers["retry-after"] == "5"
        assert detail(refused, 503).startswith(
            "The answer took longer than 0.5 s, which is the limit; ask for less at once"
        )
        assert client.get("/api/v1/runs").status_code == 200
    deadline = time.monotonic() + 10
    while stored_counts(database) != (2, 2):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (
            {"lock_seconds": 0.2},
            "Somebody else changes the same for 0.2 s, which is the limit; try again in a few seconds.",
        ),
        (
            {"lock_seconds": 20, "statement_seconds": 0.2},
            "The database worked on this for 0.2 s, which is the limit; ask for less at once.",
        ),
    ],
)
def test_the_database_gives_up_in_time(
    opened: Opener, database: Database, base: Document, limits: dict[str, float], sentence: str
) -> None:
    client = opened(**limits)
    client.post("/api/v1/experiments", json={"name": "q", "base": base})
    with database.write() as session:
        run_id = session.scalars(select(Run.id).with_for_update()).one()
        assert detail(client.post(f"/api/v1/runs/{run_id}/cancel"), 503) == sentence
    assert client.post(f"/api/v1/runs/{run_id}/cancel").status_code == 200
    with client.app.state.database.read() as session:  # type: ignore[attr-defined]
        assert session.scalar(text("SHOW statement_timeout")) == ("200ms" if "statement_seconds" in limits else "15s")
        assert session.scalar(text("SHOW lock_timeout")) == ("20s" if "statement_seconds" in limits else "200ms")


def test_so_many_files_are_sent_at_once_and_no_more(
    opened: Opener, settings: Settings, database: Database, base: Document
) -> None:
    client = opened(downloads=2)
    client.post("/api/v1/experiments", json={"name": "q", "base": base})
    (run,) = client.get("/api/v1/runs").json()["items"]
    checkpoint_id = commit_checkpoint(database, settings.run_dir, run["id"])
    places = client.app.state.download_places  # type: ignore[attr-defined]
    link = client.post(f"/api/v1/checkpoints/{checkpoint_id}/link").json()
    addresses = [f"/api/v1/checkpoints/{checkpoint_id}/{part}" for part in ("archive", "files/config.json")]
    for address in (*addresses, link["archive_url"], link["file_urls"]["config.json"]):
        places.num_open = 1
        assert client.get(address).status_code == 200
        assert places.num_open == 1
        places.num_open = 2
        assert detail(client.get(address), 503).startswith(
            "2 files are being sent, as many as one API process sends at once;"
        )
        assert places.num_open == 2
    assert Limits().downloads == 16
