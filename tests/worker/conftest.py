"""A server of engine processes for the tests of this folder: each process of pytest imports torch for engines once."""

from collections.abc import Iterator

import pytest

from tests.worker.engine_servers import OverlookingServer, kept, server_of
from worker.engine_server import EngineServer


@pytest.fixture(scope="session")
def engine_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineServer | None]:
    """None on systems where every engine is started by itself."""
    if not EngineServer.is_possible():
        yield None
        return
    server = kept(server_of(OverlookingServer, tmp_path_factory.mktemp("engine-server")))
    yield server
    server.end()


@pytest.fixture
def engines(engine_server: EngineServer | None, request: pytest.FixtureRequest) -> EngineServer | None:
    """What starts the engines of a test: the server where that is possible, nothing when it asks for `alone`, too."""
    return None if getattr(request, "param", "forked") == "alone" else engine_server
