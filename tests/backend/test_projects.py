"""What belongs to another project does not exist: not in lists, not by its id, not for a change."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import aliased

from backend.app import create_app
from backend.database import Database, now_of
from backend.project_database import ProjectDatabase
from backend.queries.metrics import metrics
from backend.records import Checkpoint, Event, Rollout
from backend.settings import Settings
from backend.tables import Analysis, Experiment, Preflight, Run, Worker
from engine.export_spec import ExportResult
from tests.access import key_of, with_key
from tests.backend.checkpoints import commit_checkpoint
from tests.backend.conftest import ADDRESS
from tests.backend.recorded import add_worker, set_metric

Document = dict[str, Any]


@pytest.fixture
def people(settings: Settings, database: Database) -> Iterator[dict[str, TestClient]]:
    """The API, asked by an operator of each of two projects and by an operator of all."""
    with TestClient(create_app(settings), base_url=ADDRESS) as first:
        yield {
            name: TestClient(first.app, base_url=ADDRESS, headers=with_key(key_of(database, "operator", project)))
            for name, project in (("lab", "lab"), ("other", "other"), ("all", "*"))
        }


@pytest.fixture
def ids(people: dict[str, TestClient], settings: Settings, database: Database, base: Document) -> dict[str, str]:
    """Ids of one of everything, made by the operator of the project `lab`."""
    lab = people["lab"]
    experiment = lab.post("/api/v1/experiments", json={"name": "q", "base": base}).json()["id"]
    (run,) = lab.get(f"/api/v1/experiments/{experiment}/runs").json()
    set_metric(database, run["id"], "loss", [1.0])
    rollout = Rollout(
        run_id=run["id"], fence=3, step=20, subject="student", horizon=8, path="traces/none.parquet", row=0,
        prompt_index=0, prompt="Q", completion="A", num_prompt_tokens=1, num_tokens=1, finish_reason="eos",
        mean_reverse_kl=0.1, max_reverse_kl=0.1,
    )  # fmt: skip
    with database.write() as session:
        session.add(rollout)
        session.add(Event(run_id=run["id"], seq=2, time=datetime.now(UTC), kind="warning", fence=3, payload={}))
    checkpoint = commit_checkpoint(database, settings.run_dir, run["id"])
    return {
        "experiment": experiment,
        "run": run["id"],
        "checkpoint": checkpoint,
        "rollout": rollout.id,
        "preflight": lab.post("/api/v1/preflights", json=base).json()["id"],
        "analysis": lab.post("/api/v1/analyses", json={"run": base}).json()["id"],
        "question": lab.post("/api/v1/playground/questions", json=_question(run["id"])).json()["id"],
        "export": lab.post("/api/v1/exports", json=_export(checkpoint)).json()["id"],
        "view": lab.post("/api/v1/views", json={"name": "v", "query": "x=step"}).json()["id"],
    }


def _question(run_id: str) -> Document:
    return {"run_id": run_id, "prompt": "k3", "speakers": [{"kind": "base"}]}


def _export(checkpoint_id: str) -> Document:
    return {"checkpoint_id": checkpoint_id, "export": {"kind": "merged"}}


_LISTS = ("experiments", "runs", "checkpoints", "preflights", "analyses", "playground/questions", "exports", "views")


def _items(client: TestClient, path: str) -> list[Any]:
    found = client.get(f"/api/v1/{path}").json()
    items: list[Any] = found["items"] if isinstance(found, dict) else found
    return items


@pytest.mark.attack(17)
def test_lists_hold_only_what_is_the_projects_own(people: dict[str, TestClient], ids: dict[str, str]) -> None:
    assert ids
    for path in (*_LISTS, f"checkpoints?run_id={ids['run']}", f"runs?experiment_id={ids['experiment']}"):
        assert {name: len(_items(client, path)) for name, client in people.items()} == {"lab": 1, "other": 0, "all": 1}


@pytest.mark.attack(17)
def test_ids_of_another_project_are_not_found(people: dict[str, TestClient], ids: dict[str, str]) -> None:
    run = f"runs/{ids['run']}"
    found = [f"{kind}s/{ids[kind]}" for kind in ("experiment", "run", "checkpoint", "preflight")]
    found += [f"analyses/{ids['analysis']}", f"experiments/{ids['experiment']}/runs"]
    found += [f"playground/questions/{ids['question']}", f"exports/{ids['export']}"]
    found += [f"{run}/{part}" for part in ("metrics", "events", "evaluations", "positions", "rollouts", "checkpoints")]
    found += [f"checkpoints/{ids['checkpoint']}/{part}" for part in ("archive", "files/config.json")]
    for path in found:
        statuses = {name: client.get(f"/api/v1/{path}").status_code for name, client in people.items()}
        assert statuses == {"lab": 200, "other": 404, "all": 200}, path
    rollout = {name: client.get(f"/api/v1/rollouts/{ids['rollout']}").status_code for name, client in people.items()}
    assert rollout == {"lab": 410, "other": 404, "all": 410}, "its file is not there, which only its project may know"


@pytest.mark.attack(17)
def test_nobody_changes_what_is_another_projects(
    people: dict[str, TestClient], ids: dict[str, str], database: Database
) -> None:
    other, lab = people["other"], people["lab"]
    changes = [
        f"runs/{ids['run']}/cancel",
        f"analyses/{ids['analysis']}/cancel",
        f"playground/questions/{ids['question']}/cancel",
        f"checkpoints/{ids['checkpoint']}/link",
        f"exports/{ids['export']}/cancel",
        f"exports/{ids['export']}/remove",
    ]
    no_files = f"exports/{ids['export']}/link"  # nor has its own project any yet
    for path in (*changes, no_files):
        assert other.post(f"/api/v1/{path}").status_code == 404, path
    assert lab.get(f"/api/v1/runs/{ids['run']}").json()["desired_state"] == "run"
    assert lab.get(f"/api/v1/analyses/{ids['analysis']}").json()["state"] == "queued"
    with ProjectDatabase(database, "other").write() as session:
        session.execute(update(Run).values(priority=9))
        session.execute(update(Checkpoint).values(step=9))
        assert session.get(Run, ids["run"]) is None
        assert session.scalars(select(Event)).all() == []
    with database.read() as session:
        assert set(session.scalars(select(Run.priority))) == {0}
        assert set(session.scalars(select(Checkpoint.step))) == {20}
    for path in changes:
        assert lab.post(f"/api/v1/{path}").status_code == 200, path


def test_queries_that_forget_the_project_are_limited_all_the_same(ids: dict[str, str], database: Database) -> None:
    for project, number in (("lab", 1), ("other", 0), ("*", 1), ("none", 0), ("lab", 1)):
        with ProjectDatabase(database, project).read() as session:
            assert len(metrics(session, ids["run"], (), after_step=0)) == number, "inside a subquery"
            assert session.scalar(select(func.count()).select_from(Rollout)) == number
            assert len(session.scalars(select(aliased(Run).id)).all()) == number, "by another name"
            other, event = aliased(Run), aliased(Event)
            assert len(session.scalars(select(event.seq).join(other, other.id == event.run_id)).all()) == 2 * number
            assert (session.get(Checkpoint, ids["checkpoint"]) is None) == (number == 0)
    with ProjectDatabase(database, "lab").read() as session:
        for statement in (text("SELECT * FROM runs"), select(Run.__table__.c.id), delete(Run.__table__)):
            with pytest.raises(AssertionError, match="without mapped classes it has no limit"):
                session.execute(statement)
        assert now_of(session) > datetime(2020, 1, 1, tzinfo=UTC)


def test_what_is_made_belongs_to_its_maker(
    people: dict[str, TestClient], ids: dict[str, str], database: Database
) -> None:
    assert ids
    maker = people["lab"].get("/api/v1/me").json()["id"]
    with database.read() as session:
        for table, number in (
            (Experiment, 1),
            (Run, 1),
            (Preflight, 1),
            (Analysis, 3),
        ):  # a question and an export are rows of analyses
            assert session.execute(select(table.project_id, table.created_by)).all() == [("lab", maker)] * number


def test_an_operator_of_all_projects_makes_things_in_the_default_one(
    people: dict[str, TestClient], base: Document, database: Database
) -> None:
    people["all"].post("/api/v1/preflights", json=base)
    with database.read() as session:
        assert session.scalars(select(Preflight.project_id)).all() == ["default"]


@pytest.mark.attack(17)
def test_what_an_operator_of_all_projects_asks_of_a_run_belongs_to_the_runs_project(
    people: dict[str, TestClient], ids: dict[str, str], database: Database, base: Document
) -> None:
    everybody, app = people["all"], people["all"].app
    viewers = {
        project: TestClient(app, base_url=ADDRESS, headers=with_key(key_of(database, "viewer", project)))
        for project in ("lab", "default")
    }
    asked = {
        "analyses": {"run": base, "run_id": ids["run"]},
        "playground/questions": _question(ids["run"]),
        "exports": _export(ids["checkpoint"]),
    }
    for path, body in asked.items():
        answer = everybody.post(f"/api/v1/{path}", json=body)
        assert answer.status_code == 201, answer.text
        statuses = {name: one.get(answer.headers["Location"]).status_code for name, one in viewers.items()}
        assert statuses == {"lab": 200, "default": 404}, path
        assert {name: len(_items(one, path)) for name, one in viewers.items()} == {"lab": 2, "default": 0}, path
    of_nobodys_run = everybody.post("/api/v1/analyses", json={"run": base}).json()["id"]
    statuses = {name: one.get(f"/api/v1/analyses/{of_nobodys_run}").status_code for name, one in viewers.items()}
    assert statuses == {"lab": 404, "default": 200}
    foreign = people["other"].post("/api/v1/analyses", json={"run": base, "run_id": ids["run"]})
    assert (foreign.status_code, foreign.json()["errors"][0]["field"]) == (422, "run_id")


def test_an_operator_of_all_projects_makes_room_in_the_runs_project(
    settings: Settings, ids: dict[str, str], database: Database, people: dict[str, TestClient]
) -> None:
    limits = settings.limits.model_copy(update={"playground_kept": 1, "exports_kept": 1})
    newer = people["all"].post("/api/v1/exports", json=_export(ids["checkpoint"])).json()["id"]
    with database.write() as session:
        session.execute(update(Analysis).where(Analysis.kind.in_(("playground", "export"))).values(state="succeeded"))
        made = ExportResult(kind="merged", files=[], is_kept=True, notes=[], seconds=0)
        session.execute(update(Analysis).where(Analysis.kind == "export").values(result=made))
    with TestClient(create_app(settings.model_copy(update={"limits": limits})), base_url=ADDRESS) as small:
        credential = people["all"].headers["Authorization"]
        for path, body in (("playground/questions", _question(ids["run"])), ("exports", _export(ids["checkpoint"]))):
            answer = small.post(f"/api/v1/{path}", json=body, headers={"Authorization": credential})
            assert answer.status_code == 201, answer.text
    assert people["lab"].get(f"/api/v1/playground/questions/{ids['question']}").status_code == 404, "it made room"
    let_go = {id: people["lab"].get(f"/api/v1/exports/{id}").json()["removed_at"] for id in (ids["export"], newer)}
    assert [id for id, removed_at in let_go.items() if removed_at is not None] == [ids["export"]]


def test_the_queue_counts_every_project_and_workers_tell_only_ones_own(
    people: dict[str, TestClient], ids: dict[str, str], database: Database, base: Document
) -> None:
    mine = people["other"].post("/api/v1/experiments", json={"name": "q", "base": base}).json()["id"]
    (run,) = people["other"].get(f"/api/v1/experiments/{mine}/runs").json()
    assert people["other"].get(f"/api/v1/runs/{run['id']}").json()["queue_position"] == 2
    worker = add_worker(database, datetime.now(UTC))
    with database.write() as session:
        session.execute(update(Worker).where(Worker.id == worker).values(run_id=ids["run"]))
    told = {name: client.get("/api/v1/workers").json()[0]["run_id"] for name, client in people.items()}
    assert told == {"lab": ids["run"], "other": None, "all": ids["run"]}


def test_admins_see_the_keys_of_their_project(people: dict[str, TestClient], database: Database) -> None:
    app = people["lab"].app
    admins = {
        project: TestClient(app, base_url=ADDRESS, headers=with_key(key_of(database, "admin", project)))
        for project in ("lab", "*")
    }
    seen = {name: {key["project_id"] for key in client.get("/api/v1/keys").json()} for name, client in admins.items()}
    assert seen == {"lab": {"lab"}, "*": {"lab", "other", "*"}}
    others = next(key["id"] for key in admins["*"].get("/api/v1/keys").json() if key["project_id"] == "other")
    assert admins["lab"].post(f"/api/v1/keys/{others}/revoke").status_code == 404
    assert people["other"].get("/api/v1/me").status_code == 200
    assert admins["*"].post(f"/api/v1/keys/{others}/revoke").status_code == 200
    assert people["other"].get("/api/v1/me").status_code == 401
