"""Lists that are longer than what a page reads, against a real API: their order, links to what they no longer have, what is said."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from backend.database import Database
from dashboard.api_client import ApiClient
from tests import databases
from tests.access import TOKEN
from tests.api_process import served
from tests.worker.runs import queue_runs, set_columns, short_spec

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


@pytest.fixture
def database(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database whose API process the dashboard speaks to."""
    address = databases.sqlite_copy(home)
    opened = Database(address)
    monkeypatch.setenv("INCIPIT_LOCAL_TOKEN", TOKEN)
    with served(address) as api:
        monkeypatch.setenv("INCIPIT_API_URL", api.url)
        yield opened
    opened.close()


@pytest.fixture
def client(database: Database) -> Iterator[ApiClient]:
    """A client of the same API."""
    assert database
    with ApiClient(os.environ["INCIPIT_API_URL"], token=TOKEN) as opened:
        yield opened


def shown(view: str, **query: str) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=120).run()
    app.query_params.update(query)
    found = app.switch_page(f"views/{view}.py").run()
    assert not found.exception
    return found


def links(app: AppTest) -> list[str]:
    return [str(one.proto.label).strip("*") for one in app.get("page_link")]


def test_runs_that_wait_are_shown_in_the_order_of_the_api(database: Database, client: ApiClient) -> None:
    ids = queue_runs(database, *[short_spec(name=name) for name in ("a", "b", "c")])  # made together, at one time
    ids += queue_runs(database, short_spec(name="urgent"))
    set_columns(database, ids[-1], priority=5)
    assert [client.run(id).queue_position for id in ids] == [2, 3, 4, 1]
    queue = next(one.value for one in shown("system").dataframe if "place" in one.value)
    assert queue["run"].tolist() == ["urgent", "a", "b", "c"]
    assert [one for one in links(shown("home")) if one in set(queue["run"])] == queue["run"].tolist()
