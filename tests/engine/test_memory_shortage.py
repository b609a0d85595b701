"""An update that runs out of memory is begun again with half the micro-batch: real processes, a real limit of the kernel's."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engine.events import RunEvent, StepDone, Warned, read_events
from tests.engine.models import write_random_model
from tests.engine.running import quick_document, quick_spec, train_here

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's address space"),
    pytest.mark.xdist_group("memory-shortage"),
]

# The C library returns every large block at once, and no thread of the tokenizers has address space of its own, so that what is
# left is what the limit says.
_ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip


def child(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.short_of_memory", *arguments],
        env=_ENVIRONMENT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


@pytest.fixture(scope="module")
def updated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The update of 16 rollouts with so many mebibytes left, which 16 need 340 of; without an argument, with all memory."""
    return cache(lambda *left: child("update", str(tmp_path_factory.mktemp("update")), *map(str, left)))


def test_the_update_is_begun_again_with_half_until_it_fits_and_is_the_same(updated: Any) -> None:
    whole, short = updated(), updated(60)
    assert whole["together"] == []
    assert short["together"] == [16, 8, 4][: len(short["together"])] != []
    assert short["micro_batch"] == short["together"][-1] // 2
    assert short["loss"] == pytest.approx(whole["loss"], rel=0, abs=1e-6)
    assert short["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-6)
    # Nothing of the pass that failed is counted, and none of its gradient is left.
    for name in ("position_count", "num_own_tokens", "flops"):
        assert short[name] == whole[name], name
    assert short["position_loss"] == pytest.approx(whole["position_loss"], rel=1e-6)
    assert short["weights"] == pytest.approx(whole["weights"], rel=0, abs=1e-6)


def test_random_numbers_go_on_as_if_nothing_had_happened(updated: Any) -> None:
    assert updated(60)["is_random_state_kept"]


def test_both_sizes_are_told(updated: Any) -> None:
    first = updated(60)["told"][0]
    assert first.startswith("Memory ran out with 16 rollouts in a micro-batch (")
    assert "allocate memory" in first
    assert first.endswith("and the run goes on with 8, the global batch is the same.")


def test_one_rollout_that_is_too_much_is_the_end_by_name(updated: Any) -> None:
    ended = updated(0)
    assert ended["failure"] == "oom_host"
    assert "memory ran out with one rollout at a time" in ended["message"]
    assert "set gradient_checkpointing to always" in ended["message"]
    assert len(ended["told"]) == 4


@pytest.mark.full
def test_a_run_keeps_the_size_and_so_does_its_resume_bit_for_bit(tmp_path: Path) -> None:
    for seed, name in enumerate(("student", "teacher")):
        write_random_model(tmp_path / name, seed, hidden=256, layers=12)
    evaluation = quick_document()["evaluation"]
    assert isinstance(evaluation, dict)
    spec = quick_spec(
        student={"path": str(tmp_path / "student")},
        teacher={"path": str(tmp_path / "teacher")},
        max_completion_tokens=100,
        prefix={"kind": "linear", "start_tokens": 4, "increment_tokens": 92},
        num_steps=3,
        prompts_per_step=16,
        checkpoints={"every_steps": 1, "keep_last": 9},
        evaluation=evaluation | {"num_prompts": 1},
    )
    folder = tmp_path / "run"
    assert child("run", str(folder), spec.model_dump_json(), "55") == {
        "failure": None
    }  # it happens from 80 down, as seen to 30
    events: list[RunEvent] = [event for event, _ in read_events(folder / "attempts" / "1" / "events.jsonl")]
    told = [event for event in events if isinstance(event, Warned) and event.code == "micro_batch"]
    assert {event.step for event in told} == {1}
    checkpoints = folder / "attempts" / "1" / "checkpoints"
    state = json.loads((checkpoints / "step-2" / "trainer" / "state.json").read_text())
    kept = state["plan"]["micro_batch_rollouts"]
    assert 1 <= kept <= 8
    assert f"with {2 * kept} rollouts" in told[-1].message or f"with {2 * kept + 1} rollouts" in told[-1].message
    assert f"goes on with {kept}," in told[-1].message

    again = train_here(spec, folder, attempt=2, resume=checkpoints / "step-2")
    assert not [event for event in again if isinstance(event, Warned) and event.code == "micro_batch"]
    (last,) = [event for event in again if isinstance(event, StepDone)]
    assert last.metrics["loss"] == next(e.metrics["loss"] for e in events if isinstance(e, StepDone) and e.step == 3)
    resumed = folder / "attempts" / "2" / "checkpoints" / "step-3" / "model.safetensors"
    assert resumed.read_bytes() == (checkpoints / "step-3" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("left", [pytest.param(1_000_000, marks=pytest.mark.full), 4_000_000])
def test_a_model_that_does_not_fit_is_no_bad_model(left: int) -> None:
    code = f"""
import resource, psutil, torch
from engine.language_model import load_language_model
from engine.model_spec import ModelSpec
from engine.train import failure_of
limit = psutil.Process().memory_info().vms + {left}
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    load_language_model(ModelSpec(path="builtin:tiny/models/student-plan"), "student", torch.device("cpu"), "float32")
except Exception as error:
    print(failure_of(error).failure)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=_ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["oom_host"], done.stderr[-2000:]
