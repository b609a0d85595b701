"""Outside a local stack each person signs in with a key of theirs; the real API judges it."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from backend.access import Principal
from backend.database import Database
from backend.expansion import PlannedRun
from backend.queries.api_keys import revoke_key
from backend.queries.experiments import create_experiment
from tests import databases
from tests.access import key_of
from tests.api_process import ApiProcess
from tests.worker.runs import short_spec

APP = str(Path(__file__).parents[2] / "dashboard" / "app.py")


@pytest.fixture
def database_url(home: Path) -> str:
    """SQLite alone: the dashboard is the subject here."""
    return databases.sqlite_copy(home)


@pytest.fixture
def api_url(database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The API as a process of its own, to which the dashboard is pointed without any credential."""
    key_of(database, "admin")
    api = ApiProcess(database_url)
    api.start()
    monkeypatch.setenv("INCIPIT_API_URL", api.url)
    yield api.url
    api.kill()


def _opened() -> AppTest:
    return AppTest.from_file(APP, default_timeout=60).run()


def _signed_in(key: str) -> AppTest:
    app = _opened()
    app.text_input(key="typed-key").set_value(key)
    return next(one for one in app.button if one.label == "Sign in").click().run()


def _said(app: AppTest) -> str:
    return "\n".join(str(one.value) for one in [*app.title, *app.markdown, *app.caption, *app.error])


def _queue_run(database: Database, name: str, project_id: str) -> None:
    owner = Principal(id="key:x", role="operator", project_id=project_id)
    planned = [PlannedRun(variant="", note="", spec=short_spec(name=name))]
    with database.write() as session:
        create_experiment(session, name, "", planned, owner=owner)


@pytest.mark.usefixtures("api_url")
def test_nothing_is_shown_before_somebody_signs_in(database: Database) -> None:
    _queue_run(database, "a-secret-run", "default")
    app = _opened()
    assert not app.exception
    assert [one.value for one in app.title] == ["Sign in"]
    for view in ("home", "runs", "new_run", "checkpoints"):
        page = app.switch_page(f"views/{view}.py").run()
        assert [one.value for one in page.title] == ["Sign in"]
        assert "a-secret-run" not in _said(page)


@pytest.mark.usefixtures("api_url")
def test_two_people_see_their_own_project_in_the_same_process(database: Database) -> None:
    people = {}
    for project in ("lab", "other"):
        _queue_run(database, f"run-of-{project}", project)
        people[project] = _signed_in(key_of(database, "viewer", project)).run()
    for project, app in people.items():
        assert not app.exception
        assert f"viewer · {project}" in _said(app)
        (label,) = [one.label for one in app.get("page_link") if "run-of" in one.label.replace("\\", "")]
        assert label.replace("\\", "").strip("*") == f"run-of-{project}"


@pytest.mark.usefixtures("api_url")
def test_a_key_that_is_not_valid_is_refused_and_not_repeated(database: Database) -> None:
    valid = key_of(database, "viewer")
    swapped = valid[:-1] + ("0" if valid[-1] != "0" else "1")
    for key, says in (
        (swapped, "This key is not valid"),
        ("clé", "This key is not valid"),
        ("  ", "There is no key in the box"),
    ):
        app = _signed_in(key)
        assert [one.value for one in app.title] == ["Sign in"]
        assert any(says in one.value for one in app.error)
        assert len(key) < 5 or key not in _said(app)
        assert "api-key" not in app.session_state


@pytest.mark.usefixtures("api_url")
def test_the_key_stays_in_the_session_and_goes_with_the_sign_out(database: Database) -> None:
    key = key_of(database, "viewer")
    app = _signed_in(f"  {key}\n").run()
    assert not app.exception
    assert app.session_state["api-key"] == key
    assert app.text_input.len == 0
    assert key not in _said(app) + str(dict(app.query_params))
    app.button(key="sign-out").click().run()
    assert [one.value for one in app.title] == ["Sign in"]
    assert "api-key" not in app.session_state


@pytest.mark.usefixtures("api_url")
def test_the_next_person_in_the_tab_finds_nothing_of_the_last_one(database: Database) -> None:
    app = _signed_in(key_of(database, "operator")).switch_page("views/new_run.py").run()
    assert "form" in app.session_state
    app.button(key="sign-out").click().run()
    assert not app.exception
    assert [one.value for one in app.title] == ["Sign in"]
    assert "form" not in app.session_state


@pytest.mark.usefixtures("api_url")
def test_who_may_not_start_a_run_is_told_so_and_a_revoked_key_asks_to_sign_in_again(database: Database) -> None:
    key = key_of(database, "viewer")
    app = _signed_in(key).switch_page("views/analyses.py").run()
    ask = next(one for one in app.button if one.label == "Ask")
    assert ask.disabled
    assert "Your role is viewer" in ask.help
    with database.write() as session:
        revoke_key(session, key.split("_")[1])
    time.sleep(10.1)  # who somebody is, is asked for every ten seconds
    app.run()
    assert not app.exception
    assert any("needs a valid API key" in one.value for one in app.error)
    app.button(key="sign-in-again").click().run()
    assert [one.value for one in app.title] == ["Sign in"]
