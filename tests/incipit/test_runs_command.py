"""`incipit runs` against a real API process: each wish, by id, by its end or by name; what is refused is one sentence."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend.database import Database
from incipit.cli import app
from tests import databases
from tests.access import TOKEN
from tests.api_process import served
from tests.worker.runs import queue_runs, run_row, set_columns, short_spec


@pytest.fixture
def database(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database that an API process serves to the command."""
    address = databases.sqlite_copy(home)
    opened = Database(address)
    monkeypatch.setenv("INCIPIT_API_KEY", TOKEN)
    with served(address) as api:
        monkeypatch.setenv("INCIPIT_API_URL", api.url)
        yield opened
    opened.close()


def _said(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["runs", *arguments])
    assert result.exit_code == status, result.output
    return result.output


def test_every_wish_of_the_command_line_reaches_the_run(database: Database) -> None:
    first, second = queue_runs(database, short_spec(), short_spec(name="other"))
    assert json.loads(_said("list", "--json"))[0]["id"] == second
    assert first in _said("list")
    assert "short: paused, step 0 of 10" in _said("pause", first)
    assert "queued: Submitted." in _said("show", first)
    assert "paused: Paused before a worker took it." in _said("show", "short")
    assert "short: queued" in _said("resume", first[-8:])
    assert json.loads(_said("priority", "other", "7", "--json"))["priority"] == 7
    copy = json.loads(_said("clone", "other", "--set", "num_steps=20", "--name", "a copy", "--seed", "3", "--json"))
    assert (copy["num_steps"], copy["name"], copy["seed"]) == (20, "a copy", 3)
    assert "short: cancelled" in _said("cancel", first)
    assert "short: queued" in _said("retry", first, "--from-scratch")
    assert run_row(database, first).state == "queued"


def test_what_is_refused_is_one_sentence_and_status_1(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    set_columns(database, run_id, state="succeeded")
    assert _said("pause", run_id, status=1).startswith("The run has already succeeded;")
    assert _said("show", "nothing", status=1).startswith("There is no run 'nothing';")
    assert _said("clone", run_id, "--set", "num_steps=0", status=1).strip().endswith("must be at least 1; raise it.")
    assert _said("clone", run_id, "--set", "num_steps", status=2).startswith("--set is 'num_steps'; write FIELD=VALUE")


def test_without_a_stack_it_says_how_to_start_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCIPIT_HOME", str(home))
    monkeypatch.delenv("INCIPIT_API_URL", raising=False)
    assert "start it with `incipit up`" in _said("list", status=1)
