"""Analyses through the API, on both databases; a worker's writes carry its fence."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from backend.database import Database
from backend.queries import analyses as queries
from backend.tables import Analysis
from engine.analysis_spec import AnalysisProgress, AnalysisResult, AnalysisRow

_PAST = datetime(2020, 1, 1, tzinfo=UTC)
_RESULT = AnalysisResult(
    kind="teacher_prefix", axis="teacher tokens at the start", measure="accuracy", interval="95 %", num_prompts=4,
    rows=[AnalysisRow(start=0, end=1, value=0.5, low=0.2, high=0.8, count=4, details={"eos_rate": None})],
    sentences=["Alone, the student is right in 0.500."], seconds=1.5,
)  # fmt: skip


@pytest.fixture
def asked(client: TestClient, base: dict[str, Any]) -> dict[str, Any]:
    response = client.post("/api/v1/analyses", json={"run": base, "analysis": {"kind": "teacher_prefix"}})
    assert response.status_code == 201
    found: dict[str, Any] = response.json()
    assert response.headers["Location"] == f"/api/v1/analyses/{found['id']}"
    return found


def claimed(database: Database) -> queries.AnalysisClaim:
    with database.write() as session:
        claim = queries.claim_analysis(session, "a")
    assert claim is not None
    return claim


def test_an_analysis_is_queued_claimed_reported_on_and_answered(
    client: TestClient, database: Database, asked: dict[str, Any]
) -> None:
    address = f"/api/v1/analyses/{asked['id']}"
    assert (asked["state"], asked["eta_seconds"]) == ("queued", None)
    claim = claimed(database)
    assert claim.spec.analysis.kind == "teacher_prefix"
    with database.write() as session:
        assert queries.report_progress(session, claim, AnalysisProgress(done=0.5, detail="half"))
    at_work = client.get(address).json()
    assert (at_work["state"], at_work["done"], at_work["detail"]) == ("running", 0.5, "half")
    assert at_work["eta_seconds"] >= 0
    with database.write() as session:
        assert queries.claim_analysis(session, "b") is None
        queries.end_analysis(session, claim, _RESULT)
    done = client.get(address).json()
    assert done["state"] == "succeeded"
    assert AnalysisResult.model_validate(done["result"]) == _RESULT
    assert client.get("/api/v1/analyses").json() == [done]


def test_a_cancelled_analysis_takes_no_answer(client: TestClient, database: Database, asked: dict[str, Any]) -> None:
    claim = claimed(database)
    cancelled = client.post(f"/api/v1/analyses/{asked['id']}/cancel").json()
    assert cancelled["state"] == "cancelled"
    with database.write() as session:
        assert not queries.report_progress(session, claim, None)
        queries.end_analysis(session, claim, _RESULT)
    assert client.get(f"/api/v1/analyses/{asked['id']}").json()["result"] is None
    assert client.post(f"/api/v1/analyses/{asked['id']}/cancel").json()["state"] == "cancelled"


def test_an_answer_may_be_sent_again_when_the_connection_broke_at_its_commit(
    database: Database, asked: dict[str, Any]
) -> None:
    claim = claimed(database)
    assert claim.analysis_id == asked["id"]
    for _ in range(2):
        with database.write() as session:
            assert queries.end_analysis(session, claim, _RESULT), "what is stored is the claim's own"
    with database.write() as session:
        assert not queries.end_analysis(session, replace(claim, fence=claim.fence - 1), _RESULT)


def test_an_analysis_whose_worker_died_is_queued_again_and_given_up_after_three(
    client: TestClient, database: Database, asked: dict[str, Any]
) -> None:
    for expected in ("queued", "queued", "failed"):
        late = claimed(database)
        with database.write() as session:
            session.execute(update(Analysis).values(lease_until=_PAST))
            assert queries.take_back_analyses(session) == 1
            queries.end_analysis(session, late, _RESULT)
        found = client.get(f"/api/v1/analyses/{asked['id']}").json()
        assert (found["state"], found["result"]) == (expected, None)
    assert "died 3 times" in found["findings"][0]["message"]


def test_a_worker_that_ends_gives_it_back(database: Database, asked: dict[str, Any]) -> None:
    for _ in range(5):  # more often than workers may die over it
        claim = claimed(database)
        with database.write() as session:
            queries.give_back_analysis(session, claim)
    assert claimed(database).analysis_id == asked["id"]


def test_the_control_process_rings_once_for_an_analysis_that_nobody_took(
    database: Database, asked: dict[str, Any]
) -> None:
    with database.write() as session:
        assert queries.unclaimed_analyses(session, silent_seconds=60) == []
        session.execute(update(Analysis).values(created_at=datetime.now(UTC) - timedelta(minutes=5)))
        assert queries.unclaimed_analyses(session, silent_seconds=60) == [asked["id"]]
        assert queries.unclaimed_analyses(session, silent_seconds=60) == []


@pytest.mark.parametrize(
    ("analysis", "field", "says"),
    [
        (
            {"kind": "teacher_prefix", "num_prompts": 0},
            "analysis.num_prompts",
            "is 0 but must be at least 1; raise it.",
        ),
        (
            {"kind": "teacher_prefix", "prefix_tokens": []},
            "analysis.prefix_tokens",
            "has 0 entries but needs 1; add some.",
        ),
        ({"kind": "teacher_prefix", "prefix_tokens": [-1]}, "analysis.prefix_tokens.0", "must be at least 0"),
        ({"kind": "reading_tea"}, "analysis", "kind must be one of"),
    ],
)
def test_a_wrong_question_is_refused_at_its_field(
    client: TestClient, base: dict[str, Any], analysis: dict[str, Any], field: str, says: str
) -> None:
    response = client.post("/api/v1/analyses", json={"run": base, "analysis": analysis})
    assert response.status_code == 422
    (finding,) = response.json()["errors"]
    assert finding["field"] == field
    assert says in finding["message"]
    assert client.get("/api/v1/analyses").json() == []


def test_an_unknown_analysis_is_404(client: TestClient) -> None:
    assert client.get("/api/v1/analyses/nothing").status_code == 404
    assert client.post("/api/v1/analyses/nothing/cancel").status_code == 404
