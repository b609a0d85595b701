"""Signing in at an OpenID Connect provider, with Chromium, Streamlit's own login, and the API that checks the token."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from backend.access import Principal
from backend.database import Database
from backend.expansion import PlannedRun
from backend.queries.experiments import create_experiment
from tests import databases
from tests.api_process import ApiProcess
from tests.dashboard.conftest import await_answer, stopped
from tests.identity_provider import Provider
from tests.worker.runs import short_spec

APP = Path(__file__).parents[2] / "dashboard" / "app.py"
AUDIENCE = "dashboard-of-the-tests"


@pytest.fixture
def database_url(home: Path) -> str:
    """SQLite alone: the sign-in is the subject here."""
    return databases.sqlite_copy(home)


@pytest.fixture
def provider() -> Iterator[Provider]:
    started = Provider(AUDIENCE)
    yield started
    started.close()


@pytest.fixture
def dashboard_url(provider: Provider, database_url: str, tmp_path: Path) -> Iterator[str]:
    """A dashboard and an API that trust the provider, each as a process of its own; neither has a key."""
    api = ApiProcess(
        database_url,
        INCIPIT_OIDC_ISSUER=provider.issuer,
        INCIPIT_OIDC_AUDIENCE=AUDIENCE,
        INCIPIT_OIDC_PROJECT_CLAIM="project",
    )
    api.start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    secrets = tmp_path / ".streamlit" / "secrets.toml"
    secrets.parent.mkdir()
    secrets.write_text(
        f'[auth]\nredirect_uri = "{url}/oauth2callback"\ncookie_secret = "a-secret-of-32-or-more-characters-"\n'
        f'client_id = "{AUDIENCE}"\nclient_secret = "s"\nexpose_tokens = "id"\n'
        f'server_metadata_url = "{provider.issuer}/.well-known/openid-configuration"\n'
    )
    command = [sys.executable, "-m", "streamlit", "run", str(APP), "--server.port", str(port)]
    options = ["--server.address", "127.0.0.1", "--server.headless", "true", "--server.fileWatcherType", "none",
               "--browser.gatherUsageStats", "false"]  # fmt: skip
    process = subprocess.Popen(command + options, env=os.environ | {"INCIPIT_API_URL": api.url}, cwd=tmp_path)
    await_answer(f"{url}/_stcore/health", process)
    yield url
    stopped(process)
    api.kill()


def test_a_person_signs_in_at_the_provider_and_sees_their_project(
    page: Page, dashboard_url: str, provider: Provider, database: Database
) -> None:
    for project in ("lab", "other"):
        owner = Principal(id="key:x", role="operator", project_id=project)
        with database.write() as session:
            planned = [PlannedRun(variant="", note="", spec=short_spec(name=f"run-of-{project}"))]
            create_experiment(session, "q", "", planned, owner=owner)
    expect.set_options(timeout=60_000)
    page.goto(dashboard_url)
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.get_by_role("button", name="Sign in with your organisation").click()
    expect(page.get_by_text("operator · lab")).to_be_visible()
    expect(page.get_by_text("run-of-lab").first).to_be_visible()
    assert page.get_by_text("run-of-other").count() == 0
    assert "token" not in page.url
    assert {"/authorize", "/token", "/keys"} <= set(provider.asked)
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
