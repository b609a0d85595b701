"""What `precision: auto` chooses, and that bfloat16 on a CPU resumes exactly."""

import math
import time
from pathlib import Path

import pytest
import torch

from engine import setup
from engine.events import StepDone
from engine.setup import MIN_BFLOAT16_WIDTH, choose_precision
from tests.engine.models import CPU, write_random_model
from tests.engine.running import quick_spec, train_here


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student from whose width on bfloat16 pays; its weights are large enough to be packed for decoding."""
    folder = tmp_path_factory.mktemp("wide")
    write_random_model(folder, 3, hidden=MIN_BFLOAT16_WIDTH)
    return folder


@pytest.mark.parametrize("gains", [True, False])
def test_a_wide_student_is_computed_in_bfloat16_where_the_processor_gains(
    wide: Path, gains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "gains_from_bfloat16", lambda: gains)
    document = {"student": {"path": str(wide)}}
    assert choose_precision(quick_spec(**document), CPU) == ("bfloat16" if gains else "float32")
    assert choose_precision(quick_spec(**document, precision="float32"), CPU) == "float32"


@pytest.mark.parametrize("path", ["builtin:tiny/models/student-plan", "/nowhere", "builtin:../..", "./model.gguf"])
def test_a_narrow_student_and_one_of_unknown_width_are_computed_in_float32(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "gains_from_bfloat16", lambda: True)
    assert choose_precision(quick_spec(student={"path": path}), CPU) == "float32"
    assert choose_precision(quick_spec(student={"path": path}, precision="bfloat16"), CPU) == "bfloat16"


def test_bfloat16_is_chosen_where_a_step_is_faster_in_it(wide: Path) -> None:
    """The choice against a measurement of its own: other shapes, backward too. Between the two sides nothing is claimed."""
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    layers = torch.nn.Sequential(torch.nn.Linear(576, 1536), torch.nn.ReLU(), torch.nn.Linear(1536, 576))
    for _ in range(4):
        for dtype in seconds:
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                layers(torch.randn(1024, 576)).sum().backward()
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - began)
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    chosen = choose_precision(quick_spec(student={"path": str(wide)}), CPU)
    assert chosen == "float32" or gain > 1.0
    assert chosen == "bfloat16" or gain < 3.0


def test_a_bfloat16_run_of_packed_weights_resumes_exactly(wide: Path, tmp_path: Path) -> None:
    spec = quick_spec(
        student={"path": str(wide)},
        precision="bfloat16",
        prefix={"kind": "constant", "tokens": 12},
        num_steps=2,
        checkpoints={"every_steps": 1, "keep_last": 9},
    )
    whole = [e for e in train_here(spec, tmp_path / "run") if isinstance(e, StepDone)]
    start = tmp_path / "run/attempts/1/checkpoints/step-1"
    (resumed,) = [e for e in train_here(spec, tmp_path / "run", attempt=2, resume=start) if isinstance(e, StepDone)]
    assert resumed.metrics == whole[1].metrics
    assert resumed.position_loss == whole[1].position_loss
    assert 0 < (resumed.metrics["sampled_logprob_gap"] or 0.0) < 0.2
