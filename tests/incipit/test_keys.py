"""`incipit keys` works on the database itself: the first key has to come from somewhere."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend.database import Database
from backend.key_format import parsed_key
from backend.queries.api_keys import holder_of
from incipit.cli import app
from tests import databases


@pytest.fixture
def database_url(home: Path) -> str:
    """The database that INCIPIT_HOME leads to."""
    return databases.sqlite_copy(home)


@pytest.mark.usefixtures("home")
def test_a_key_is_made_listed_and_revoked(database: Database) -> None:
    run = CliRunner().invoke
    made = run(app, ["keys", "create", "ci", "--role", "operator", "--project", "lab", "--expires", "90d"])
    assert made.exit_code == 0, made.output
    key = parsed_key(made.stdout.strip())
    assert key is not None
    assert "operator of project lab, until 2" in made.stderr
    with database.read() as session:
        found = holder_of(session, key)
    assert found is not None
    assert (found[0].role, found[0].project_id) == ("operator", "lab")
    listed = run(app, ["keys", "list"])
    assert listed.output.split() == [key.id, "operator", "lab", "never", "used", "ci"]
    (as_json,) = json.loads(run(app, ["keys", "list", "--json"]).output)
    assert as_json["name"] == "ci"
    assert run(app, ["keys", "revoke", key.id]).output == f"ci ({key.id}) is revoked.\n"
    assert "revoked 2" in run(app, ["keys", "list"]).output
    with database.read() as session:
        assert holder_of(session, key) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["create", "x", "--expires", "soon"], "--expires is 'soon'; give a number of days such as 90d.\n"),
        (["create", "x", "--project", "No Spaces"], "project_id is 'No Spaces'"),
        (["revoke", "0123"], "There is no key '0123'; see `incipit keys list`.\n"),
    ],
)
@pytest.mark.usefixtures("home", "database_url")
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, ["keys", *arguments])
    assert done.exit_code == 1
    assert done.output.startswith(sentence)
    assert done.output.count("\n") == 1


@pytest.mark.usefixtures("home")
def test_a_home_without_a_database_is_told_the_remedy() -> None:
    done = CliRunner().invoke(app, ["keys", "create", "x"])
    assert done.exit_code == 1
    assert "run `python -m backend.migrate`" in done.output
