"""Lists that are longer than what a page reads, against a real API: their order, links to what they no longer have, what is said."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from backend.database import Database
from backend.queries.analyses import create_analysis
from dashboard.api_client import ApiClient
from engine.analysis_spec import AnalysisSpec, TeacherPrefix
from tests import databases
from tests.access import TOKEN
from tests.api_process import served
from tests.backend.checkpoints import commit_checkpoint
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


def captions(app: AppTest) -> str:
    return "\n".join(str(one.value) for one in app.caption)


def test_runs_that_wait_are_shown_in_the_order_of_the_api(database: Database, client: ApiClient) -> None:
    ids = queue_runs(database, *[short_spec(name=name) for name in ("a", "b", "c")])  # made together, at one time
    ids += queue_runs(database, short_spec(name="urgent"))
    set_columns(database, ids[-1], priority=5)
    assert [client.run(id).queue_position for id in ids] == [2, 3, 4, 1]
    queue = next(one.value for one in shown("system").dataframe if "place" in one.value)
    assert queue["run"].tolist() == ["urgent", "a", "b", "c"]
    assert [one for one in links(shown("home")) if one in set(queue["run"])] == queue["run"].tolist()


def test_runs_are_filtered_by_the_name_of_their_experiment_and_none_of_that_name_is_hidden(database: Database) -> None:
    for name in ("earlier", "later"):
        queue_runs(database, short_spec(name=name))  # in an experiment of its own, of one name
    (listed,) = [one.value for one in shown("runs", experiment="a question").dataframe]
    assert listed["name"].tolist() == ["later", "earlier"]


def oldest_experiment(database: Database, client: ApiClient, _: Path) -> str:
    runs = [queue_runs(database, short_spec())[0] for _ in range(201)]
    return client.run(runs[0]).experiment_id


def oldest_checkpoint(database: Database, _: ApiClient, home: Path) -> str:
    (run_id,) = queue_runs(database, short_spec())
    contents = {"config.json": b"{}"}
    made = [commit_checkpoint(database, home / "runs", run_id, step=at, contents=contents) for at in range(201)]
    return made[0]


def oldest_analysis(database: Database, _: ApiClient, __: Path) -> str:
    asked = AnalysisSpec(run=short_spec(), analysis=TeacherPrefix())
    with database.write() as session:
        made = [create_analysis(session, asked).id for _ in range(51)]
    return made[0]


@pytest.mark.parametrize(
    ("view", "name", "oldest", "listed"),
    [
        ("compare", "experiment", oldest_experiment, 200),
        ("checkpoints", "checkpoint", oldest_checkpoint, 200),
        ("analyses", "analysis", oldest_analysis, 50),
    ],
)
def test_a_link_to_what_the_list_no_longer_has_opens_it(
    database: Database, client: ApiClient, home: Path, view: str, name: str, oldest: object, listed: int
) -> None:
    assert callable(oldest)
    id = oldest(database, client, home)
    lists = {"compare": client.experiments, "checkpoints": client.checkpoints, "analyses": client.analyses}
    known = [one.id for one in lists[view]()]  # type: ignore[operator]
    assert id not in known
    assert len(known) == listed
    app = shown(view, **{name: id})
    assert not app.error
    assert app.query_params[name] in (id, [id])
    chosen = [one for one in app.selectbox if (one.key or "").startswith(f"chosen-{name}")]
    assert [one.value for one in chosen] == [id]
    unknown = shown(view, **{name: "no-such-id"})
    assert unknown.query_params[name] in ("no-such-id", ["no-such-id"])
    assert any(f"There is no {name} 'no" in one.value.replace("\\", "") for one in unknown.error)


def test_what_is_at_work_and_next_is_shown_however_many_runs_are_newer(database: Database) -> None:
    ended, at_work, _ = queue_runs(database, *[short_spec(name=name) for name in ("ended", "at work", "the next")])
    set_columns(database, ended, state="failed", failure_message="It ran out of memory.")
    set_columns(database, at_work, state="running")
    queue_runs(database, *[short_spec(name="one of many")] * 1000)
    home = links(shown("home"))
    assert home.index("at work") < home.index("the next") < home.index("one of many") < home.index("ended")
    assert "The newest 1,000 runs" in home
    system = shown("system")
    queue = next(one.value for one in system.dataframe if "place" in one.value)
    assert (len(queue), queue["run"].iloc[0]) == (1001, "the next")
    assert "of the newest 1,000 runs, newest first; choose a state to see older ones" in captions(shown("runs"))
    failed = shown("runs", state="failed")
    assert next(one.value for one in failed.dataframe)["name"].tolist() == ["ended"]
    assert "1 of 1 runs, newest first" in captions(failed)
