"""Training against a real vLLM: `make test-vllm`, in the environment that `make vllm` makes."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import RunError
from engine.events import RunEvent, StepDone
from engine.spec import RunSpec
from tests.engine.running import quick_spec, train_here
from tests.vllm.serving import Server

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("home"), pytest.mark.timeout(900)]
LARGE = {"learning_rate": 0.02, "warmup_steps": 1, "eps": 1e-4}


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(models / "student", tmp_path_factory.mktemp("server") / "log")
    yield one
    one.stop()


def served_spec(models: Path, server: Server, **changes: object) -> RunSpec:
    rollouts = {
        "kind": "vllm_servers",
        "servers": [{"address": server.address}],
        "patience_seconds": 5,
        "max_logprob_gap": 0.01,
    }
    pair = {name: {"path": str(models / name)} for name in ("student", "teacher")}
    return quick_spec(rollouts=rollouts, optimizer=LARGE, num_steps=4, **pair | changes)


def steps(events: list[RunEvent]) -> list[StepDone]:
    return [event for event in events if isinstance(event, StepDone)]


def test_every_step_is_sampled_with_the_weights_of_that_step(models: Path, server: Server, tmp_path: Path) -> None:
    done = steps(train_here(served_spec(models, server), tmp_path))
    assert [step.metrics["own_token_share"] for step in done] == [1.0] * 4
    # float32 on both sides; a student of one step before differs by 0.1 nats and more.
    assert max(step.metrics["sampled_logprob_gap"] or 0.0 for step in done) < 1e-4
    assert max(step.metrics["server_logprob_gap"] or 0.0 for step in done) < 1e-4


def test_the_same_weights_and_seeds_give_the_same_rollouts_again(models: Path, server: Server, tmp_path: Path) -> None:
    first, second = (steps(train_here(served_spec(models, server), tmp_path / name)) for name in "ab")
    # Only the first step: batches of other sizes round otherwise, and updates carry that on.
    assert first[0].metrics["loss"] == pytest.approx(second[0].metrics["loss"], rel=1e-5)


def test_a_sampling_temperature_is_that_of_the_log_probabilities(models: Path, server: Server, tmp_path: Path) -> None:
    done = steps(train_here(served_spec(models, server, sampling={"temperature": 0.6}), tmp_path))
    assert max(step.metrics["sampled_logprob_gap"] or 0.0 for step in done) < 1e-4


def test_a_killed_server_loses_nothing(models: Path, tmp_path: Path) -> None:
    """The run fails as one that may be tried again, and goes on from its checkpoint with the next server at that address."""
    server = Server(models / "student", tmp_path / "log")
    spec = served_spec(models, server, checkpoints={"every_steps": 2})
    train_here(spec.model_copy(update={"num_steps": 2}), tmp_path / "run")
    server.stop(signal.SIGKILL)
    with pytest.raises(RunError) as caught:
        train_here(spec, tmp_path / "run", attempt=2, resume=tmp_path / "run/attempts/1/checkpoints/step-2")
    assert caught.value.failure == "server_unreachable"
    again = Server(models / "student", tmp_path / "log", port=server.port)
    try:
        events = train_here(spec, tmp_path / "run", attempt=3, resume=tmp_path / "run/attempts/1/checkpoints/step-2")
    finally:
        again.stop()
    assert [step.step for step in steps(events)] == [3, 4]
    assert max(step.metrics["sampled_logprob_gap"] or 0.0 for step in steps(events)) < 1e-4


def test_vllm_as_it_comes_takes_a_tied_head_too(models: Path, tmp_path: Path) -> None:
    server = Server(models / "student", tmp_path / "log", plain=True)
    try:
        done = steps(train_here(served_spec(models, server), tmp_path / "run"))
    finally:
        server.stop()
    assert max(step.metrics["sampled_logprob_gap"] or 0.0 for step in done) < 1e-4
