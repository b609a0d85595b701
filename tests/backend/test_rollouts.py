"""Traced rollouts: the most divergent first, each with what both models thought of its tokens."""

import math
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from backend.database import Database
from backend.queries.rollouts import p99_reverse_kl
from backend.records import Rollout
from backend.settings import Settings
from engine.token_trace import TokenTrace, write_traces
from tests.backend.checkpoints import FENCE, attempt_folder


def _trace(text: str) -> TokenTrace:
    one = [-0.5]
    return TokenTrace(
        prompt_texts=["<b>", "Q"],
        token_ids=[5],
        texts=[text],
        flags=[0],
        student_logprob=one,
        teacher_logprob=one,
        reverse_kl=[0.25],
        forward_kl=[0.25],
        jsd=[0.125],
        student_entropy=[1.0],
        teacher_entropy=[1.0],
        student_rank=[1],
        teacher_rank=[2],
        candidate_ids=[[5, 6]],
        candidate_student_logprob=[[-0.5, -1.0]],
        candidate_teacher_logprob=[[-1.0, -0.5]],
        vocabulary_ids=[5, 6],
        vocabulary_texts=[text, "b"],
    )


@pytest.fixture
def trace_path(settings: Settings, database: Database, run_id: str) -> Path:
    """A trace file with three rollouts at step 20, and one row at step 0 whose file is missing."""
    path = attempt_folder(settings.run_dir, run_id) / "traces" / "step-20.parquet"
    path.parent.mkdir(parents=True)
    write_traces(path, [_trace(text) for text in ("<script>", "two", "three")])
    with database.write() as session:
        for step, row, mean in ((20, 0, 0.1), (20, 1, 0.3), (20, 2, 0.2), (0, 0, 0.5)):
            session.add(
                Rollout(
                    run_id=run_id,
                    fence=FENCE,
                    step=step,
                    subject="student" if step else "base",
                    horizon=8,
                    path=f"traces/step-{step}.parquet",
                    row=row,
                    prompt_index=row,
                    prompt="Q\x00",
                    completion="\ud800 <script>",
                    answer=None,
                    is_right=None,
                    num_prompt_tokens=2,
                    num_tokens=1,
                    finish_reason="eos",
                    mean_reverse_kl=mean,
                    max_reverse_kl=10 * mean,
                )
            )
    return path


def test_the_newest_step_comes_first_and_the_most_divergent_rollout_in_it(
    client: TestClient, run_id: str, trace_path: Path
) -> None:
    assert trace_path.exists()
    page = client.get(f"/api/v1/runs/{run_id}/rollouts").json()
    assert page["steps"] == [0, 20]
    assert [one["mean_reverse_kl"] for one in page["items"]] == [0.3, 0.2, 0.1]
    assert page["items"][0]["prompt"] == "Q␀"
    assert page["items"][0]["completion"] == "? <script>"
    by_prompt = client.get(f"/api/v1/runs/{run_id}/rollouts", params={"step": 20, "sort": "prompt"}).json()
    assert [one["row"] for one in by_prompt["items"]] == [0, 1, 2]
    assert client.get(f"/api/v1/runs/{run_id}/rollouts", params={"step": 7}).json()["items"] == []
    assert client.get(f"/api/v1/runs/{run_id}/rollouts", params={"sort": "1; DROP"}).status_code == 422


@pytest.mark.parametrize("count", [1, 99, 100, 101, 199, 200])
def test_the_colour_scale_ends_at_the_nearest_rank_of_all_maxima(database: Database, run_id: str, count: int) -> None:
    common = {
        "run_id": run_id, "fence": FENCE, "subject": "student", "horizon": 8, "path": "t", "row": 0, "prompt_index": 0,
        "prompt": "Q", "completion": "A", "num_prompt_tokens": 1, "num_tokens": 1, "finish_reason": "eos",
        "mean_reverse_kl": 0.0,
    }  # fmt: skip
    maxima = [float(7919 * at % 1009) for at in range(count)]
    with database.write() as session:
        session.add_all(Rollout(**common, step=at, max_reverse_kl=value) for at, value in enumerate(maxima))
    with database.read() as session:
        assert p99_reverse_kl(session, run_id) == sorted(maxima)[math.ceil(0.99 * count) - 1]


def test_a_rollout_comes_with_its_tokens(client: TestClient, run_id: str, trace_path: Path) -> None:
    items = client.get(f"/api/v1/runs/{run_id}/rollouts", params={"sort": "prompt"}).json()["items"]
    detail = client.get(f"/api/v1/rollouts/{items[0]['id']}").json()
    assert detail["trace"]["texts"] == ["<script>"]
    assert detail["trace"]["candidate_teacher_logprob"] == [[-1.0, -0.5]]
    assert detail["run_p99_reverse_kl"] == 5.0
    assert client.get("/api/v1/rollouts/nothing").status_code == 404
    trace_path.write_bytes(b"PAR1 damaged")
    damaged = client.get(f"/api/v1/rollouts/{items[0]['id']}")
    assert damaged.status_code == 410
    assert str(trace_path) not in damaged.text


def test_a_trace_file_that_is_gone_is_told(client: TestClient, run_id: str, trace_path: Path) -> None:
    (item,) = client.get(f"/api/v1/runs/{run_id}/rollouts", params={"step": 0}).json()["items"]
    assert trace_path.exists()
    assert client.get(f"/api/v1/rollouts/{item['id']}").status_code == 410
