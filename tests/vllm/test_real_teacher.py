"""A teacher behind a real vLLM: `make test-vllm`, in the environment that `make vllm` makes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import RunError
from engine.events import Evaluated, RunEvent, StepDone
from engine.spec import RunSpec
from tests.engine.models import WORDS
from tests.engine.running import quick_spec, train_here
from tests.vllm.serving import Server

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("home"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    one = Server(models / "teacher", tmp_path_factory.mktemp("server") / "log", options=["--max-logprobs", str(WORDS)])
    yield one
    one.stop()


def pair_spec(models: Path, **changes: object) -> RunSpec:
    pair = {name: {"path": str(models / name)} for name in ("student", "teacher")}
    return quick_spec(num_steps=4, **pair | changes)


def backend(server: Server, **changes: object) -> dict[str, object]:
    return {"kind": "vllm_servers", "servers": [{"address": server.address}], "patience_seconds": 5} | changes


def losses(events: list[RunEvent]) -> list[float | None]:
    return [event.metrics["loss"] for event in events if isinstance(event, StepDone)]


def test_with_every_token_told_it_trains_as_with_a_teacher_in_the_engine(
    models: Path, server: Server, tmp_path: Path
) -> None:
    here = train_here(pair_spec(models), tmp_path / "here")
    there = train_here(pair_spec(models, teacher_backend=backend(server, top_k=WORDS)), tmp_path / "there")
    # float32 on both sides.
    assert losses(there) == pytest.approx(losses(here), rel=1e-3)
    few = train_here(pair_spec(models, teacher_backend=backend(server, top_k=8)), tmp_path / "few")
    bound, whole = losses(few)[0], losses(here)[0]
    assert bound is not None
    assert whole is not None
    assert 0 < bound < whole


def test_the_teachers_own_texts_come_from_the_server(models: Path, server: Server, tmp_path: Path) -> None:
    spec = pair_spec(
        models,
        teacher_backend=backend(server),
        completions={"kind": "teacher"},
        divergence={"kind": "forward_kl"},
        sentinel={"kind": "watch", "num_rollouts": 2, "every_steps": 2},
    )
    first, again = (train_here(spec, tmp_path / name) for name in "ab")
    assert all(loss is not None for loss in losses(first))
    assert losses(again) == pytest.approx(losses(first), rel=1e-5)
    assert {event.subject for event in first if isinstance(event, Evaluated)} == {"base", "teacher", "student"}


def test_more_tokens_than_the_server_tells_are_refused_with_its_limit(
    models: Path, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(RunError) as caught:
        train_here(pair_spec(models, teacher_backend=backend(server, top_k=WORDS + 1)), tmp_path)
    assert caught.value.failure == "server_mismatch"
    assert f"tells at most {WORDS} likely tokens" in caught.value.message
