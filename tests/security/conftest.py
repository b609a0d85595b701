"""One API on SQLite for all tests of a file: what is refused leaves nothing behind that the next would see."""

import os
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from backend.app import create_app
from backend.database import Database
from backend.settings import Settings
from tests import databases
from tests.access import SIGNED_IN, TOKEN
from tests.backend.conftest import ADDRESS, base, run_id, run_ids

__all__ = ["base", "run_id", "run_ids"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Settings of an installation of this file's own; nobody is at the broker's address."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("INCIPIT_")]:
            environment.delenv(name)
        environment.setenv("INCIPIT_HOME", str(home))
        url = databases.sqlite_copy(home)
        yield Settings(home=home, database_url=url, broker_url="redis://127.0.0.1:1/0", local_token=SecretStr(TOKEN))


@pytest.fixture(scope="module")
def database(settings: Settings) -> Iterator[Database]:
    """Its database."""
    opened = Database(settings.sql_url)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[TestClient]:
    """Its API, whose faults come as the responses that people would get."""
    app = create_app(settings)
    with TestClient(app, base_url=ADDRESS, headers=SIGNED_IN, raise_server_exceptions=False) as opened:
        yield opened
