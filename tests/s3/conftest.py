"""A bucket of its own for each test, on one real server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.ids import new_id
from backend.s3_bucket import S3Bucket
from backend.s3_store import S3Store
from backend.settings import Settings
from backend.store_settings import StoreSettings
from tests import databases
from tests.s3.object_store import make_bucket, object_store, store_settings
from tests.worker.conftest import engine_server, engines

__all__ = ["engine_server", "engines"]


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the server."""
    with object_store(tmp_path_factory.mktemp("object-store")) as address:
        yield address


@pytest.fixture
def database_url(home: Path) -> str:
    """SQLite alone: what differs here is where files are, and the queries behind it are tested on both beside their own code."""
    return databases.sqlite_copy(home)


@pytest.fixture
def store(endpoint: str, tmp_path: Path) -> StoreSettings:
    """Settings of a bucket that is not there yet."""
    return store_settings(endpoint, tmp_path, bucket=f"runs-{new_id().lower()}")


@pytest.fixture
def bucket(store: StoreSettings) -> S3Bucket:
    """The bucket of these settings, empty."""
    return make_bucket(store)


@pytest.fixture
def s3_store(bucket: S3Bucket, home: Path) -> S3Store:
    """A store in it, with the disk of one machine."""
    return S3Store(bucket, home / "runs")


@pytest.fixture
def stored_settings(settings: Settings, bucket: S3Bucket) -> Settings:
    """Settings of an installation that keeps its files in the bucket."""
    return settings.model_copy(update={"store": bucket.settings})
