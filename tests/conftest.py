"""Fixtures that every part shares: a home of its own, and a migrated database of either kind, for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from backend.database import Database
from backend.settings import Settings
from tests import databases
from tests.access import TOKEN
from tests.home import home as home


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, home: Path) -> Iterator[str]:
    """Address of an empty database with the newest schema; each test runs on both kinds."""
    if request.param == "sqlite":
        yield databases.sqlite_copy(home)
    else:
        with databases.postgres_copy() as url:
            yield url


@pytest.fixture
def settings(home: Path, database_url: str) -> Settings:
    """Settings with nobody at the broker's address; tests with a broker replace it by model_copy."""
    return Settings(
        home=home, database_url=database_url, broker_url="redis://127.0.0.1:1/0", local_token=SecretStr(TOKEN)
    )


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The same database, open."""
    opened = Database(database_url)
    yield opened
    opened.close()
