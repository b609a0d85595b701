"""Runs: listed in pages, filtered, asked to stop, and read with what they have recorded."""

from datetime import UTC, datetime
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from sqlalchemy import event

from backend.database import Database
from backend.records import Evaluation, Event, PositionCurve
from backend.schemas import Run
from engine.flops import FlopLedger
from engine.frozen import STORED
from engine.spec import RunSpec
from tests.backend.recorded import change_run, set_metric

Document = dict[str, Any]


def test_pages_hold_every_run_once_newest_first(client: TestClient, run_ids: list[str]) -> None:
    seen: list[str] = []
    cursor = None
    for _ in range(4):
        page = client.get("/api/v1/runs", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += [run["id"] for run in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == run_ids[::-1]
    assert cursor is None


def test_runs_that_arrive_meanwhile_do_not_shift_pages(client: TestClient, run_ids: list[str], base: Document) -> None:
    page = client.get("/api/v1/runs", params={"limit": 3}).json()
    client.post("/api/v1/experiments", json={"name": "later", "base": base})
    rest = client.get("/api/v1/runs", params={"limit": 3, "cursor": page["next_cursor"]}).json()
    assert [run["id"] for run in page["items"] + rest["items"]] == run_ids[::-1]


def test_a_made_up_cursor_is_refused(client: TestClient) -> None:
    for cursor in ("x", "é", "AAAA", "'; DROP TABLE runs; --", "=" * 60):
        response = client.get("/api/v1/runs", params={"cursor": cursor})
        assert response.status_code == 422, cursor
        assert "cursor is" in response.json()["detail"]


def test_filters_combine(client: TestClient, run_ids: list[str], database: Database, base: Document) -> None:
    change_run(database, run_ids[1], state="failed")
    change_run(database, run_ids[2], state="succeeded")
    other = client.post("/api/v1/experiments", json={"name": "100% Other_Thing", "base": base}).json()

    def names(**params: Any) -> list[str]:
        return [run["name"] for run in client.get("/api/v1/runs", params=params).json()["items"]]

    assert names(state=["failed", "succeeded"]) == ["short · seed 2", "short · seed 1"]
    assert names(experiment_id=other["id"]) == ["base"]
    assert names(search="SEED 4") == ["short · seed 4"]
    assert names(search="how SHORT", state="failed") == ["short · seed 1"]
    assert names(search="100%") == names(search="r_t") == ["base"]
    assert names(search="%") == ["base"], "a wildcard of SQL is an ordinary character"
    assert names(experiment_id="nothing") == []


def test_listing_takes_the_same_number_of_statements_for_any_number_of_runs(
    client: TestClient, run_ids: list[str]
) -> None:
    statements: list[str] = []
    engine = client.app.state.database.engine  # type: ignore[attr-defined]
    event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    assert len(client.get("/api/v1/runs", params={"limit": 1}).json()["items"]) == 1
    of_one = len(statements)
    assert len(client.get("/api/v1/runs").json()["items"]) == len(run_ids)
    assert len(statements) == 2 * of_one
    assert not any("runs.spec," in one or "runs.spec " in one for one in statements)


def test_a_queued_run_is_cancelled_at_once(client: TestClient, run_ids: list[str]) -> None:
    assert client.post(f"/api/v1/runs/{run_ids[0]}/cancel").json()["state"] == "cancelled"
    kinds = [one["kind"] for one in client.get(f"/api/v1/runs/{run_ids[0]}/events").json()["items"]]
    assert kinds, "the history tells of it"
    others = [client.get(f"/api/v1/runs/{run_id}").json()["state"] for run_id in run_ids[1:]]
    assert set(others) == {"queued"}


def test_cancelling_only_asks_and_the_end_is_final(client: TestClient, run_ids: list[str], database: Database) -> None:
    change_run(database, run_ids[0], state="running")
    run = client.post(f"/api/v1/runs/{run_ids[0]}/cancel", json={"checkpoint": False}).json()
    assert (run["state"], run["desired_state"]) == ("running", "cancel")
    assert client.post(f"/api/v1/runs/{run_ids[0]}/cancel").status_code == 200, "asking twice changes nothing"
    change_run(database, run_ids[1], state="succeeded")
    refused = client.post(f"/api/v1/runs/{run_ids[1]}/cancel")
    assert refused.status_code == 409
    assert refused.json()["detail"].startswith("The run has already succeeded;")
    assert client.get(f"/api/v1/runs/{run_ids[1]}").json()["desired_state"] == "run"
    assert client.post("/api/v1/runs/nothing/cancel").status_code == 404


def test_a_run_tells_its_place_in_the_queue(client: TestClient, run_ids: list[str], database: Database) -> None:
    change_run(database, run_ids[3], priority=5)
    change_run(database, run_ids[0], state="running")
    places = [client.get(f"/api/v1/runs/{id}").json()["queue_position"] for id in run_ids]
    assert places == [None, 2, 3, 1, 4]


def test_time_to_go_is_told_after_five_steps(client: TestClient, run_id: str, database: Database) -> None:
    change_run(database, run_id, state="running", last_step=4)
    set_metric(database, run_id, "seconds.total", [9.0, 2.0, 2.0, 2.0])
    assert client.get(f"/api/v1/runs/{run_id}").json()["eta_seconds"] is None
    change_run(database, run_id, last_step=10, flops=FlopLedger(rollout=3.0))
    set_metric(database, run_id, "seconds.total", [2.0] * 10)
    run = client.get(f"/api/v1/runs/{run_id}").json()
    assert run["eta_seconds"] == [60.0, 60.0], "30 steps of 2 seconds"
    assert run["flops"]["rollout"] == 3.0


def test_metrics_are_thinned_to_their_limit_and_keep_their_ends(
    client: TestClient, run_id: str, database: Database
) -> None:
    set_metric(database, run_id, "loss", [float(step) for step in range(1, 5002)])
    set_metric(database, run_id, "grad_norm", [0.5, None, 0.25])
    grad_norm, loss = client.get(f"/api/v1/runs/{run_id}/metrics").json()
    assert grad_norm == {"key": "grad_norm", "steps": [1, 2, 3], "values": [0.5, None, 0.25]}
    assert 500 < len(loss["steps"]) <= 2000
    assert (loss["steps"][0], loss["steps"][-1]) == (1, 5001)
    assert loss["values"] == [float(step) for step in loss["steps"]]
    (tail,) = client.get(f"/api/v1/runs/{run_id}/metrics", params={"keys": "loss,other", "after_step": 4998}).json()
    assert tail["steps"] == [4999, 5000, 5001]


def test_events_are_read_on_from_where_one_stopped(client: TestClient, run_id: str, database: Database) -> None:
    with database.write() as session:
        for seq in range(100, 107):
            payload = {"message": "a \x00 b \ud800"}
            session.add(Event(run_id=run_id, seq=seq, time=datetime.now(UTC), kind="warning", fence=2, payload=payload))
    first = client.get(f"/api/v1/runs/{run_id}/events", params={"after_seq": 99, "limit": 5}).json()
    assert [item["seq"] for item in first["items"]] == [100, 101, 102, 103, 104]
    assert first["items"][0]["payload"] == {"message": "a ␀ b ?"}
    rest = client.get(f"/api/v1/runs/{run_id}/events", params={"after_seq": first["last_seq"]}).json()
    assert [item["seq"] for item in rest["items"]] == [105, 106]
    end = client.get(f"/api/v1/runs/{run_id}/events", params={"after_seq": rest["last_seq"]}).json()
    assert end == {"items": [], "last_seq": 106}
    assert client.get(f"/api/v1/runs/{run_id}").json()["last_seq"] == 106


def test_events_of_named_kinds_are_read_alone(client: TestClient, run_id: str, database: Database) -> None:
    with database.write() as session:
        for seq, kind in enumerate(("warning", "phase", "warning", "ready"), start=100):
            session.add(Event(run_id=run_id, seq=seq, time=datetime.now(UTC), kind=kind, fence=2, payload={}))
    address = f"/api/v1/runs/{run_id}/events"
    warned = client.get(address, params={"after_seq": 99, "kind": "warning"}).json()
    assert [item["seq"] for item in warned["items"]] == [100, 102]
    both = client.get(address, params={"after_seq": 100, "kind": ["warning", "ready"]}).json()
    assert [item["seq"] for item in both["items"]] == [102, 103]


def test_evaluations_and_curves_come_in_the_order_of_steps(client: TestClient, run_id: str, database: Database) -> None:
    with database.write() as session:
        for step, subject in ((20, "student"), (0, "teacher"), (0, "base")):
            session.add(
                Evaluation(
                    run_id=run_id,
                    subject=subject,
                    split="dev",
                    step=step,
                    fence=1,
                    num_prompts=100,
                    horizon=8,
                    metrics={"accuracy": 0.5, "exact": None},
                    training_flops=1e9 * step,
                    training_seconds=2.0 * step,
                    is_best=step == 20,
                )
            )
        for step in range(1, 1001):
            session.add(
                PositionCurve(
                    run_id=run_id, source="training", split="train", step=step, fence=1, horizon=2, mean=[0.5, 0.25]
                )
            )
    evaluations = client.get(f"/api/v1/runs/{run_id}/evaluations").json()
    assert [(one["step"], one["subject"]) for one in evaluations] == [(0, "base"), (0, "teacher"), (20, "student")]
    assert evaluations[2]["metrics"] == {"accuracy": 0.5, "exact": None}
    curves = client.get(f"/api/v1/runs/{run_id}/positions").json()
    assert len(curves) <= 102
    assert curves[-1]["step"] == 1000
    (one,) = client.get(f"/api/v1/runs/{run_id}/positions", params={"source": "training", "step": 37}).json()
    assert (one["step"], one["mean"]) == (37, [0.5, 0.25])


def test_what_belongs_to_no_run_is_not_found(client: TestClient) -> None:
    for part in ("", "/metrics", "/events", "/evaluations", "/positions", "/rollouts", "/checkpoints"):
        response = client.get(f"/api/v1/runs/no-such-run{part}")
        assert response.status_code == 404, part
        assert response.json()["detail"] == "There is no run 'no-such-run'; it may have been removed, see the list."


def test_what_a_newer_rule_would_refuse_is_still_read(client: TestClient, run_id: str, database: Database) -> None:
    accepted = RunSpec.model_validate(client.get(f"/api/v1/runs/{run_id}").json()["spec"])
    too_long = accepted.prefix.model_copy(update={"tokens": accepted.max_completion_tokens + 1})
    change_run(database, run_id, spec=accepted.model_copy(update={"prefix": too_long}))  # a copy is not validated
    answer = client.get(f"/api/v1/runs/{run_id}")
    assert answer.json()["spec"]["prefix"]["tokens"] == accepted.max_completion_tokens + 1
    assert run_id in [run["id"] for run in client.get("/api/v1/runs").json()["items"]]
    with pytest.raises(ValidationError, match="max_completion_tokens"):
        Run.model_validate_json(answer.content)
    assert Run.model_validate_json(answer.content, context=STORED).spec.prefix == too_long
    document = answer.json()["spec"]
    assert client.post("/api/v1/experiments", json={"name": "again", "base": document}).status_code == 422
