"""`incipit runs` against a real API process: each wish, by id, by its end or by name; what is refused is one sentence."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from backend.database import Database
from backend.queries.leases import keep_worker
from backend.resources import WorkerCapabilities
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
    assert json.loads(_said("priority", "other", "-10", "--json"))["priority"] == -10
    copy = json.loads(_said("clone", "other", "--set", "num_steps=20", "--name", "a copy", "--seed", "3", "--json"))
    assert (copy["num_steps"], copy["name"], copy["seed"]) == (20, "a copy", 3)
    assert "short: cancelled" in _said("cancel", first)
    assert "short: queued" in _said("retry", first, "--from-scratch")
    assert run_row(database, first).state == "queued"


def test_a_run_that_waits_for_a_worker_says_why_and_a_copy_may_ask_for_another(database: Database) -> None:
    first, _ = queue_runs(database, short_spec(), short_spec(name="other"))
    assert "other and 1 more wait: No worker is connected; start one" in " ".join(_said("list").split())
    assert "No worker is connected" in _said("show", first)
    copy = json.loads(_said("clone", first, "--label", "lab", "--label", "a100", "--memory-gb", "2.5", "--json"))
    assert (copy["needs"]["labels"], copy["needs"]["cpu_memory_bytes"]) == (["a100", "lab"], 2_500_000_000)
    freed = json.loads(_said("clone", copy["id"], "--label", "", "--json"))
    assert freed["needs"]["labels"] == []
    again = json.loads(_said("clone", copy["id"], "--memory-gb", "0", "--json"))
    assert (again["needs"]["labels"], again["needs"]["cpu_memory_bytes"]) == (["a100", "lab"], 0)
    assert "labels" in _said("clone", first, "--label", "A B", status=1)


def _workers(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["workers", *arguments])
    assert result.exit_code == status, result.output
    return result.output


def _keep_slots(database: Database, host: str, count: int) -> None:
    for index in range(count):
        with database.write() as session:
            keep_worker(
                session, f"{host}:0a:7:{index}", host=host, boot_id="0a", pid=7, pid_started=1.0, slot=f"cpu{index}",
                capabilities=WorkerCapabilities(device="cpu", memory_total_bytes=16 * 10**9, labels=["eu"]),
            )  # fmt: skip


def test_workers_are_drained_by_host_and_resumed_by_id(database: Database) -> None:
    _keep_slots(database, "lab", 2)
    assert _workers("list").count("ready") == 2
    drained = json.loads(_workers("drain", "lab", "--requeue", "--json"))
    assert [(one["drain"], one["drain_requeues"]) for one in drained] == [("drained", True)] * 2
    (resumed,) = json.loads(_workers("resume", "lab:0a:7:1", "--json"))
    assert resumed["drain"] == "no"
    assert "There is no worker 'nobody'; `incipit workers list`" in _workers("drain", "nobody", status=1)


def test_a_variable_that_is_not_set_or_a_host_that_is_gone_drains_no_others(database: Database) -> None:
    for host in ("gpu-10", "gpu-11"):
        _keep_slots(database, host, 1)
    assert "The worker is empty" in _workers("drain", "", "--requeue", status=1)
    assert "2 workers have ids that begin with 'gpu-1'" in _workers("drain", "gpu-1", status=1)
    assert _workers("list").count("ready") == 2
    (drained,) = json.loads(_workers("drain", "gpu-11:0a", "--json"))
    assert (drained["host"], drained["drain"]) == ("gpu-11", "drained")


def test_what_names_no_run_or_several_is_refused_with_their_ids(database: Database) -> None:
    (only,) = queue_runs(database, short_spec())
    assert "The run is empty" in _said("cancel", "", status=1)
    (second,) = queue_runs(database, short_spec())
    said = _said("cancel", "short", status=1)
    assert said.startswith("2 runs are called 'short' or have it in their id; give the id of one: ")
    assert only in said
    assert second in said
    assert [run_row(database, one).state for one in (only, second)] == ["queued"] * 2


def test_what_is_refused_is_one_sentence_and_status_1(database: Database) -> None:
    (run_id,) = queue_runs(database, short_spec())
    set_columns(database, run_id, state="succeeded")
    assert _said("pause", run_id, status=1).startswith("The run has already succeeded;")
    assert _said("show", "nothing", status=1).startswith("There is no run 'nothing';")
    assert _said("clone", run_id, "--set", "num_steps=0", status=1).strip().endswith("must be at least 1; raise it.")
    for number in ("1e999", "NaN"):
        refused = _said("clone", run_id, "--set", f"optimizer.learning_rate={number}", status=1)
        assert "changes.optimizer.learning_rate is" in refused
        assert refused.strip().endswith("a number must be finite and below 1.8e308 in size; write such a one.")
    assert _said("clone", run_id, "--set", "num_steps", status=2).startswith("--set is 'num_steps'; write FIELD=VALUE")


def test_without_a_stack_it_says_how_to_start_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INCIPIT_HOME", str(home))
    monkeypatch.delenv("INCIPIT_API_URL", raising=False)
    assert "start it with `incipit up`" in _said("list", status=1)
