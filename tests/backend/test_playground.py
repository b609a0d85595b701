"""Questions of the playground through the API, on both databases: asked, answered, refused before anything is queued."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from backend.app import create_app
from backend.database import Database
from backend.limits import Limits
from backend.playground import QueuedQuestion
from backend.queries import analyses as machinery
from backend.records import Rollout
from backend.settings import Settings
from backend.tables import Analysis
from engine.analysis_spec import AnalysisProgress
from engine.playground_spec import Answer, PlaygroundResult
from engine.token_trace import TokenTrace, read_trace, write_traces
from tests.access import SIGNED_IN
from tests.backend.checkpoints import commit_checkpoint
from tests.backend.conftest import ADDRESS
from tests.dashboard.fake_traces import HOSTILE, trace

Document = dict[str, Any]
_PATH = "/api/v1/playground/questions"


@pytest.fixture
def checkpoint_id(database: Database, settings: Settings, run_id: str) -> str:
    return commit_checkpoint(database, settings.run_dir, run_id)


@pytest.fixture
def question(run_id: str, checkpoint_id: str) -> Document:
    speakers = [{"kind": "checkpoint", "checkpoint_id": checkpoint_id}, {"kind": "base"}, {"kind": "teacher"}]
    return {"run_id": run_id, "prompt": f"k3 {HOSTILE}", "speakers": speakers, "max_completion_tokens": 16, "seed": 3}


@pytest.fixture
def asked(client: TestClient, question: Document) -> Document:
    response = client.post(_PATH, json=question)
    assert response.status_code == 201, response.json()
    found: Document = response.json()
    assert response.headers["Location"] == f"{_PATH}/{found['id']}"
    return found


def claimed(database: Database) -> machinery.AnalysisClaim:
    with database.write() as session:
        claim = machinery.claim_analysis(session, "a")
    assert claim is not None
    return claim


def result_of(traces: list[TokenTrace]) -> PlaygroundResult:
    """The base student has another tokenizer; the others have a scored answer each."""
    answers = [
        Answer(
            speaker=speaker, sample=0, row=row, unscored="" if row is not None else "its tokenizer is not the teacher's",
            text="\x00a\ud800" + HOSTILE, num_prompt_tokens=9, num_tokens=12, finish_reason="eos",
            mean_reverse_kl=None if row is None else 0.5, max_reverse_kl=None if row is None else max(traces[row].reverse_kl),
        )
        for speaker, row in ((0, 0), (1, None), (2, 1))
    ]  # fmt: skip
    return PlaygroundResult.model_construct(
        answers=answers, reader="short at step 20", scoring_temperature=1.0, notes=["Frames differ."], seconds=2.0
    )


def answer(database: Database) -> list[TokenTrace]:
    """What a worker does with the question that waits; the traces that it stores."""
    claim = claimed(database)
    traces = [trace(12, seed=1), trace(12, seed=2)]
    file = BytesIO()
    write_traces(file, traces)
    with database.write() as session:
        machinery.end_analysis(session, claim, result_of(traces), file.getvalue())
    return [read_trace(BytesIO(file.getvalue()), row) for row in range(2)]


def test_a_question_is_queued_claimed_reported_on_and_answered(
    client: TestClient, database: Database, question: Document, asked: Document
) -> None:
    address = f"{_PATH}/{asked['id']}"
    assert (asked["state"], asked["queue_position"], asked["result"]) == ("queued", 1, None)
    assert asked["speakers"] == [asked["run_name"] + " at step 20", "base student", "teacher"]
    assert {name: asked["asked"][name] for name in question} == question
    second = client.post(_PATH, json=question | {"seed": 4}).json()
    assert second["queue_position"] == 2
    claim = claimed(database)
    assert isinstance(claim.spec, QueuedQuestion)
    assert claim.spec.spec.run.teacher.path == "builtin:tiny/models/teacher"
    assert claim.spec.spec.speakers[0].label == asked["speakers"][0]
    with database.write() as session:
        assert machinery.report_progress(session, claim, AnalysisProgress(done=0.5, detail="the teacher writes"))
    at_work = client.get(address).json()
    assert (at_work["state"], at_work["queue_position"], at_work["detail"]) == ("running", None, "the teacher writes")
    assert at_work["eta_seconds"] >= 0
    assert client.get(f"{_PATH}/{second['id']}").json()["queue_position"] == 1
    listed = client.get(_PATH).json()
    assert [(one["id"], one["state"]) for one in listed] == [(second["id"], "queued"), (asked["id"], "running")]
    assert listed[0]["prompt"] == question["prompt"]


def test_a_question_that_is_sent_again_with_its_key_is_asked_once(client: TestClient, question: Document) -> None:
    first, again = (client.post(_PATH, json=question, headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert first.json() == again.json()
    assert len(client.get(_PATH).json()) == 1


def test_an_answer_comes_with_its_tokens_and_the_scale_of_its_question(
    client: TestClient, database: Database, asked: Document
) -> None:
    traces = answer(database)
    done = client.get(f"{_PATH}/{asked['id']}").json()
    assert (done["state"], done["done"]) == ("succeeded", 1.0)
    assert [one["row"] for one in done["result"]["answers"]] == [0, None, 1]
    assert done["result"]["answers"][0]["text"] == "␀a?" + HOSTILE  # what no database stores is replaced
    first, last = (client.get(f"{_PATH}/{asked['id']}/answers/{row}").json() for row in (0, 1))
    assert TokenTrace.model_validate(first["trace"]) == traces[0]
    assert TokenTrace.model_validate(last["trace"]) == traces[1]
    assert first["pair"] == f"student: {asked['speakers'][0]}"
    assert last["pair"] == "written by the teacher, read by the student: short at step 20"
    assert first["limit_words"] == "largest of these answers"
    assert (
        first["limit_nats"] == last["limit_nats"] == pytest.approx(max(max(one.reverse_kl) for one in traces), rel=1e-2)
    )
    assert client.get(f"{_PATH}/{asked['id']}/answers/2").status_code == 404


def test_answers_have_the_colour_scale_of_their_run_where_it_has_one(
    client: TestClient, database: Database, asked: Document, run_id: str
) -> None:
    answer(database)
    with database.write() as session:
        session.add(
            Rollout(
                run_id=run_id, fence=3, step=20, subject="student", horizon=8, path="none", row=0, prompt_index=0, prompt="Q",
                completion="A", num_prompt_tokens=1, num_tokens=1, finish_reason="eos", mean_reverse_kl=0.1, max_reverse_kl=0.7,
            )
        )  # fmt: skip
    found = client.get(f"{_PATH}/{asked['id']}/answers/0").json()
    assert (found["limit_nats"], found["limit_words"]) == (0.7, "99th percentile of the run")


def test_damaged_tokens_are_a_sentence(client: TestClient, database: Database, asked: Document) -> None:
    answer(database)
    with database.write() as session:
        session.execute(update(Analysis).values(traces=b"PAR1 of something else"))
    response = client.get(f"{_PATH}/{asked['id']}/answers/0")
    assert response.status_code == 410
    assert response.json()["detail"] == f"The tokens of question {asked['id']} are damaged; ask it again."


def test_a_cancelled_question_takes_no_answer(client: TestClient, database: Database, asked: Document) -> None:
    claim = claimed(database)
    for _ in range(2):
        assert client.post(f"{_PATH}/{asked['id']}/cancel").json()["state"] == "cancelled"
    with database.write() as session:
        assert not machinery.report_progress(session, claim, None)
        machinery.end_analysis(session, claim, [])
    assert client.get(f"{_PATH}/{asked['id']}").json()["state"] == "cancelled"


def test_questions_and_analyses_do_not_meet(client: TestClient, base: Document, asked: Document) -> None:
    analysis = client.post("/api/v1/analyses", json={"run": base}).json()
    assert [one["id"] for one in client.get("/api/v1/analyses").json()] == [analysis["id"]]
    assert [one["id"] for one in client.get(_PATH).json()] == [asked["id"]]
    for path in (f"{_PATH}/{analysis['id']}", f"/api/v1/analyses/{asked['id']}"):
        assert client.get(path).status_code == 404
        assert client.post(f"{path}/cancel").status_code == 404
    assert client.get(f"{_PATH}/{asked['id']}").json()["state"] == "queued"
    assert client.get(f"/api/v1/analyses/{analysis['id']}").json()["state"] == "queued"


@pytest.fixture
def opened(settings: Settings) -> Iterator[Callable[..., TestClient]]:
    """Opens an API with other limits than the usual ones."""
    with ExitStack() as stack:

        def with_limits(**limits: float) -> TestClient:
            app = create_app(settings.model_copy(update={"limits": Limits.model_validate(limits)}))
            return stack.enter_context(TestClient(app, base_url=ADDRESS, headers=SIGNED_IN))

        yield with_limits


def test_the_queue_and_what_is_kept_are_limited(
    opened: Callable[..., TestClient], database: Database, question: Document
) -> None:
    client = opened(playground_queued=2, playground_kept=2)
    first, second = (client.post(_PATH, json=question | {"seed": seed}).json()["id"] for seed in (1, 2))
    response = client.post(_PATH, json=question)
    assert response.status_code == 409
    assert "2 questions in the queue, and at most 2 may wait" in response.json()["detail"]
    for _ in range(2):
        answer(database)
    third = client.post(_PATH, json=question).json()["id"]
    assert [one["id"] for one in client.get(_PATH).json()] == [third, second], "the oldest made room"
    assert client.get(f"{_PATH}/{first}").status_code == 404


def test_an_unknown_question_is_404(client: TestClient) -> None:
    assert client.get(f"{_PATH}/nothing").status_code == 404
    assert client.get(f"{_PATH}/nothing/answers/0").status_code == 404
    assert client.post(f"{_PATH}/nothing/cancel").status_code == 404
