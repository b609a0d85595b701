"""vLLM inside the engine, below a worker as people run it: `make test-vllm`, in the environment that `make vllm` makes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from backend.database import Database
from backend.queries.wishes import ask_to_pause, ask_to_resume
from backend.records import Attempt, Metric
from engine.spec import RunSpec
from tests import databases
from tests.vllm.serving import PYTHON
from tests.worker.runs import once, recorded_steps, run_row, short_spec
from tests.worker.supervising import supervise
from worker.settings import WorkerSettings
from worker.supervisor import Workplace

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
LARGE = {"learning_rate": 0.02, "warmup_steps": 1, "eps": 1e-4}


@pytest.fixture
def place(home: Path) -> Iterator[Workplace]:
    opened = Database(databases.sqlite_copy(home))
    settings = WorkerSettings(stop_seconds=30, retry_seconds=0, vllm_python=Path(PYTHON).absolute())
    yield Workplace(opened, home, home / "runs", settings, lambda: False)
    opened.close()


def colocated(models: Path, rollouts: dict[str, object] | None = None, **changes: object) -> RunSpec:
    rollouts = {"kind": "vllm_colocated", "max_logprob_gap": 0.01} | (rollouts or {})
    pair = {name: {"path": str(models / name)} for name in ("student", "teacher")}
    return short_spec(rollouts=rollouts, optimizer=LARGE, **pair | changes)


def recorded(place: Workplace, attempt: Attempt, key: str) -> dict[int, float]:
    """A metric of the attempt's run by step."""
    with place.database.read() as session:
        query = select(Metric.step, Metric.value).where(Metric.run_id == attempt.run_id, Metric.key == key)
        return {step: value for step, value in session.execute(query) if value is not None}


def test_every_step_is_sampled_with_the_weights_of_that_step(models: Path, place: Workplace) -> None:
    attempt = supervise(place, colocated(models, num_steps=6))
    run = run_row(place.database, attempt.run_id)
    assert (run.state, run.last_step, run.failure_message) == ("succeeded", 6, None)
    assert set(recorded(place, attempt, "own_token_share").values()) == {1.0}
    for key in ("sampled_logprob_gap", "server_logprob_gap"):
        gaps = recorded(place, attempt, key)
        assert sorted(gaps) == [1, 2, 3, 4, 5, 6]
        # float32 on both sides; a student of one step before differs by 0.1 nats and more.
        assert 0 <= min(gaps.values()) <= max(gaps.values()) < 1e-4
    assert not list((place.run_dir / attempt.run_id).rglob("rollout-weights/*"))


def test_weights_that_are_loaded_less_often_make_the_steps_between_off_policy(models: Path, place: Workplace) -> None:
    attempt = supervise(place, colocated(models, {"sync_every_steps": 2}, num_steps=4))
    assert sorted(recorded(place, attempt, "server_logprob_gap")) == [1, 3]
    gaps = recorded(place, attempt, "sampled_logprob_gap")
    assert max(gaps[1], gaps[3]) < 1e-4
    assert min(gaps[2], gaps[4]) > 1e-2


def test_a_gap_that_is_not_allowed_ends_the_run_by_name(models: Path, place: Workplace) -> None:
    attempt = supervise(place, colocated(models, {"max_logprob_gap": 1e-12}))
    run = run_row(place.database, attempt.run_id)
    assert (run.state, run.failure_kind) == ("failed", "server_mismatch")
    assert run.failure_message is not None
    assert "more than rollouts.max_logprob_gap (1e-12); set rollouts to engine." in run.failure_message


def test_a_paused_run_goes_on_with_its_own_weights(models: Path, place: Workplace) -> None:
    def pause(run_id: str) -> None:
        with place.database.write() as session:
            ask_to_pause(session, run_id)

    spec = colocated(models, num_steps=100_000)
    with once(place.database, lambda run_id: len(recorded_steps(place.database, run_id)) >= 2, pause, seconds=200):
        attempt = supervise(place, spec)
    run = run_row(place.database, attempt.run_id)
    assert run.state == "paused", run.failure_message
    reached = run.last_step
    with place.database.write() as session:
        ask_to_resume(session, attempt.run_id)
    with once(
        place.database, lambda run_id: len(recorded_steps(place.database, run_id)) >= reached + 2, pause, seconds=200
    ):
        again = supervise(place)
    assert again.resumed_from_step == reached
    gaps = recorded(place, again, "sampled_logprob_gap")
    assert max(gaps) > reached
    assert max(gaps.values()) < 1e-4
