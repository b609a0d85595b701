"""Share done and time to go of a run at work: evaluations, the report and checkpoints take time too."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.database import Database
from backend.records import Event
from tests.backend.recorded import change_run, set_metric

Document = dict[str, Any]


def begin(client: TestClient, database: Database, base: Document, **changes: object) -> str:
    """A running run of 40 steps that has done none."""
    body = {"name": "How long?", "base": base | changes, "variants": [{"name": "short"}], "seeds": [0]}
    experiment = client.post("/api/v1/experiments", json=body)
    assert experiment.status_code == 201, experiment.text
    (run,) = client.get(f"/api/v1/experiments/{experiment.json()['id']}/runs").json()
    change_run(database, run["id"], state="running")
    return str(run["id"])


def tell(database: Database, run_id: str, *events: Document) -> None:
    """Put events behind each other into the run's history."""
    with database.write() as session:
        for seq, event in enumerate(events, start=1000):
            payload = {name: value for name, value in event.items() if name != "kind"}
            now = datetime.now(UTC)
            session.add(Event(run_id=run_id, seq=seq, time=now, kind=event["kind"], fence=1, payload=payload))


def evaluated(step: int, seconds: float, subject: str = "student", split: str = "dev", **more: object) -> Document:
    return {"kind": "evaluation", "step": step, "subject": subject, "split": split, "seconds": seconds,
            "is_cached": False, "num_prompts": 50, **more}  # fmt: skip


def saved(step: int, seconds: float) -> Document:
    return {"kind": "checkpoint", "step": step, "seconds": seconds}


def at_step(database: Database, run_id: str, step: int, seconds: float = 2.0, horizon: float = 8.0) -> None:
    """Steps of equal length."""
    change_run(database, run_id, last_step=step, training_seconds=seconds * step)
    set_metric(database, run_id, "seconds.total", [seconds] * step)
    set_metric(database, run_id, "horizon", [horizon] * step)


def told(client: TestClient, run_id: str) -> tuple[float, list[float]]:
    run = client.get(f"/api/v1/runs/{run_id}").json()
    return run["done_share"], run["eta_seconds"]


EVALUATION = {"path": "builtin:tiny/data/dev.jsonl", "every_steps": 10}


def test_evaluations_and_checkpoints_to_come_are_counted(
    client: TestClient, base: Document, database: Database
) -> None:
    run_id = begin(client, database, base, evaluation=EVALUATION, checkpoints={"every_steps": 20})
    at_step(database, run_id, 10)
    tell(database, run_id, evaluated(0, 3.0, "base"), evaluated(10, 5.0), evaluated(10, 7.0), saved(0, 1.5))
    share, eta = told(client, run_id)
    # 30 steps of 2 s, evaluations at 20, 30 and 40 of 5 to 7 s, checkpoints at 20 and 40.
    assert eta == [60 + 15 + 3, 60 + 21 + 3]
    spent = 10 * 2 + 6 + 1.5  # an evaluation and the checkpoint that is there
    assert share == pytest.approx(spent / (spent + 81))


def test_the_base_students_evaluation_stands_in_for_the_first_one(
    client: TestClient, base: Document, database: Database
) -> None:
    run_id = begin(client, database, base, evaluation=EVALUATION)
    at_step(database, run_id, 5)
    tell(database, run_id, evaluated(0, 4.0, "base"), evaluated(0, 90.0, "teacher"))
    assert told(client, run_id)[1] == [70 + 16, 70 + 16], "35 steps, evaluations at 10, 20, 30 and 40"


def test_a_report_is_judged_by_the_base_student_or_by_the_number_of_prompts(
    client: TestClient, base: Document, database: Database
) -> None:
    reported = EVALUATION | {"report_path": "builtin:tiny/data/report.jsonl", "num_report_prompts": 100}
    run_id = begin(client, database, base, evaluation=reported)
    at_step(database, run_id, 40)
    from_cache = evaluated(0, 0.001, "base", "report", is_cached=True)
    tell(database, run_id, evaluated(40, 4.0), from_cache)
    assert told(client, run_id) == (pytest.approx(96 / 104), [8.0, 8.0]), "twice the prompts of the dev split"
    other = begin(client, database, base, evaluation=reported)
    at_step(database, other, 40)
    tell(database, other, evaluated(40, 4.0), evaluated(0, 11.0, "base", "report"))
    assert told(client, other)[1] == [11.0, 11.0]


def test_longer_horizons_to_come_widen_the_range(client: TestClient, base: Document, database: Database) -> None:
    growing = {"kind": "stages", "stages": [{"steps": 10, "tokens": 8}, {"steps": 30, "tokens": 32}]}
    run_id = begin(client, database, base, evaluation=EVALUATION, prefix=growing)
    at_step(database, run_id, 10)
    assert told(client, run_id)[1] == [60.0, 240.0], "30 steps of four times the horizon"
    adaptive = {"kind": "plateau", "start_tokens": 8, "increment_tokens": 8}
    other = begin(client, database, base, evaluation=EVALUATION, prefix=adaptive)
    at_step(database, other, 10, horizon=16.0)
    low, high = told(client, other)[1]
    assert low == 60.0, "it never goes back to where it began"
    assert high > 60.0


def test_what_has_begun_is_not_wholly_to_do(client: TestClient, base: Document, database: Database) -> None:
    run_id = begin(client, database, base, evaluation=EVALUATION)
    at_step(database, run_id, 10)
    change_run(database, run_id, progressed_at=datetime.now(UTC) - timedelta(seconds=4))
    tell(database, run_id, evaluated(0, 6.0, "base"))
    low, high = told(client, run_id)[1]
    assert 75.0 < low == high <= 80.0, "30 steps and four evaluations, of which one has run for four seconds"


def test_a_budget_of_flops_ends_a_run_sooner(client: TestClient, base: Document, database: Database) -> None:
    run_id = begin(client, database, base, evaluation=EVALUATION, training_flops_budget=1500.0)
    at_step(database, run_id, 10)
    set_metric(database, run_id, "training_flops", [100.0 * step for step in range(1, 11)])
    assert told(client, run_id)[1] == [10.0, 10.0], "five steps more"


def test_nothing_is_told_of_a_warmup_or_of_a_run_that_waits(
    client: TestClient, base: Document, database: Database
) -> None:
    run_id = begin(client, database, base, warmup_phase={"kind": "sft", "num_steps": 20})
    at_step(database, run_id, 20)
    assert told(client, run_id) == (None, None)
    other = begin(client, database, base)
    at_step(database, other, 20)
    change_run(database, other, state="paused")
    assert told(client, other) == (None, None)
