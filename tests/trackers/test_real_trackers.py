"""A real run in the real trackers, read back with their own readers: `make test-trackers`."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from engine.events import StepDone, Warned
from engine.journal import Journal
from incipit.tracking.run_folder import RunFolder
from tests.engine.running import events_of, quick_spec, train_here

pytestmark = [pytest.mark.trackers, pytest.mark.usefixtures("home"), pytest.mark.timeout(600)]
BIN = Path(os.environ.get("INCIPIT_TRACKERS_BIN", ".venv-trackers/bin")).absolute()
TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")
_SECRET = "hf_" + "a" * 30


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps and an alarm with a secret in it."""
    folder = tmp_path_factory.mktemp("tracked") / "run"
    begin(folder)
    train_here(quick_spec(), folder)
    with Journal(folder / "attempts/1/events.jsonl") as journal:
        journal.emit(Warned, code="alarm_repetition", message=f"Too much of {_SECRET}.", step=6, value=0.5, limit=0.2)
    return folder


def begin(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(quick_spec().model_dump_json())


def command(folder: Path, to: str, out: Path, *options: str) -> list[str]:
    return [str(BIN / "incipit"), "track", str(folder), "--to", to, "--out", str(out), *options]


def track(folder: Path, to: str, out: Path) -> None:
    done = subprocess.run(command(folder, to, out), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def read_back(folder: Path, to: str, out: Path) -> dict[str, Any]:
    identity = RunFolder(folder).identity()
    assert identity is not None
    reader = Path(__file__).parent / "read_back.py"
    done = subprocess.run(
        [str(BIN / "python"), str(reader), to, str(out), identity[0]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    read: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return read


def losses(folder: Path) -> list[list[float]]:
    return [[event.step, event.metrics["loss"] or 0.0] for event in events_of(folder) if isinstance(event, StepDone)]


@pytest.mark.parametrize("to", TRACKERS)
def test_a_run_told_twice_is_there_once(trained: Path, tmp_path: Path, to: str) -> None:
    track(trained, to, tmp_path)
    track(trained, to, tmp_path)
    read = read_back(trained, to, tmp_path)
    assert read["runs"] == 1
    told = read["metrics"]["train/loss"]
    assert [step for step, _ in told] == [step for step, _ in losses(trained)]
    # TensorBoard keeps float32.
    assert [value for _, value in told] == pytest.approx([value for _, value in losses(trained)], rel=1e-6)
    assert {"evaluation/student/dev/accuracy", "flops/training", "seconds/total"} <= set(read["metrics"])
    assert all(len({step for step, _ in points}) == len(points) for points in read["metrics"].values())
    units = {"train/loss": "nats", "flops/training": "FLOPs", "evaluation/student/dev/mean_tokens": "tokens"}
    assert {name: read["units"][name] for name in units} == units
    assert float(read["parameters"]["optimizer.learning_rate"]) == 5e-4
    assert read["parameters"]["student.path"] == "builtin:tiny/models/student-plan"
    assert "Too much of hf_…" in read["notes"]["alarm/alarm_repetition"]
    assert "checkpoints/step-6" in read["notes"]["link/checkpoint-6"]
    assert read.get("tags", ["alarm_repetition"]) == ["alarm_repetition"]
    assert read.get("status", "FINISHED") == "FINISHED"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and _SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("to", TRACKERS)
def test_a_run_is_followed_to_its_end(tmp_path: Path, to: str) -> None:
    folder, out = tmp_path / "run", tmp_path / "out"
    begin(folder)
    with subprocess.Popen(command(folder, to, out, "--follow"), stdout=subprocess.PIPE, text=True) as following:
        train_here(quick_spec(), folder)
        assert following.wait(timeout=300) == 0
    told = read_back(folder, to, out)["metrics"]["train/loss"]
    assert [value for _, value in told] == pytest.approx([value for _, value in losses(folder)], rel=1e-6)


def test_a_server_that_is_not_there_is_one_sentence_and_no_matter_of_the_run(trained: Path, tmp_path: Path) -> None:
    uri = "http://me:password@127.0.0.1:9"
    done = subprocess.run(
        command(trained, "mlflow", tmp_path, "--uri", uri), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "mlflow did not take the run" in done.stderr.splitlines()[-1]
    assert "password" not in done.stderr
