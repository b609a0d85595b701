"""A disk without room: checkpoints are left out with a warning, older ones stay, and the third one ends the run."""

import resource
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.checkpoint import newest_checkpoint, verify_checkpoint
from engine.disk_space import HEADROOM, RESERVE_BYTES, estimated_bytes, shortage
from engine.errors import RunError
from engine.events import CheckpointSaved, Failed, Finished, RunEvent, Stopped, Warned
from engine.exit_codes import OF_FAILURE, STOPPED
from engine.student import Student
from tests.engine.models import tiny_model, tiny_spec
from tests.engine.running import EngineProcess, events_of, quick_document, quick_spec, steps_of, train_here

EVERY_STEP = {"checkpoints": {"every_steps": 1, "keep_last": 9}}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _own_home(home: Path) -> None:
    """Each test measures its own baselines."""


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], None]:
    """Let the operating system report these free bytes, one after the other; the last of them for ever."""

    def report(free: list[int]) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free.pop(0) if len(free) > 1 else free[0]))

    return report


def warnings_of(events: list[RunEvent]) -> list[Warned]:
    return [event for event in events if isinstance(event, Warned) and event.code == "disk_space"]


def saved_steps(events: list[RunEvent]) -> list[int]:
    return [event.step for event in events if isinstance(event, CheckpointSaved)]


def test_room_is_the_last_size_with_headroom_and_a_reserve(tmp_path: Path, disk: Callable[[list[int]], None]) -> None:
    needed = int(HEADROOM * 10**9) + RESERVE_BYTES
    disk([needed, needed - 1])
    assert shortage(tmp_path, 10**9) is None
    missing = shortage(tmp_path, 10**9)
    assert missing is not None
    assert (missing.free_bytes, missing.needed_bytes) == (needed - 1, needed)
    assert "1,400 MiB are free" in missing.message
    assert "needs 1,400 MiB (1.2 times its 954 MiB, and 256 MiB in reserve)" in missing.message


def test_the_estimate_is_near_the_size_of_the_first_checkpoint(tmp_path: Path) -> None:
    (saved, *_) = [e for e in train_here(quick_spec(num_steps=2), tmp_path / "run") if isinstance(e, CheckpointSaved)]
    estimate = estimated_bytes(Student(tiny_model(), tiny_spec()))
    assert saved.num_bytes / HEADROOM < estimate < saved.num_bytes * HEADROOM


def test_a_checkpoint_without_room_is_left_out_and_the_next_interval_tries_again(
    tmp_path: Path, disk: Callable[[list[int]], None]
) -> None:
    plenty = 10**12
    disk([plenty, 1000, 2000, plenty])
    events = train_here(quick_spec(num_steps=5, **EVERY_STEP), tmp_path / "run")
    assert isinstance(events[-1], Finished)
    assert saved_steps(events) == [1, 4, 5]
    first, second = warnings_of(events)
    assert (first.step, first.value, second.step, second.value) == (2, 1000, 3, 2000)
    assert first.limit is not None
    assert first.limit > RESERVE_BYTES
    assert first.message.endswith("the checkpoint of step 2 is left out and the older ones are kept.")
    assert "keep_last" in first.advice
    verify_checkpoint(tmp_path / "run/attempts/1/checkpoints/step-1")


def test_the_third_in_a_row_ends_the_run_with_value_limit_and_fix(
    tmp_path: Path, disk: Callable[[list[int]], None]
) -> None:
    disk([10**12, 5 * 1024**2])
    with pytest.raises(RunError) as caught:
        train_here(quick_spec(num_steps=9, **EVERY_STEP), tmp_path / "run")
    assert caught.value.failure == "disk_full"
    for words in (
        "5.0 MiB are free",
        "a checkpoint needs 25",
        "3 checkpoints in a row",
        "Free some, lower checkpoints.",
    ):
        assert words in caught.value.message
    events = events_of(tmp_path / "run")
    assert [warning.step for warning in warnings_of(events)] == [2, 3, 4]
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run/attempts/1/checkpoints/step-1"


def test_the_last_checkpoint_is_never_left_out(tmp_path: Path, disk: Callable[[list[int]], None]) -> None:
    disk([1000])
    with pytest.raises(RunError, match="the last checkpoint could not be written") as caught:
        train_here(quick_spec(num_steps=2), tmp_path / "run")
    assert caught.value.failure == "disk_full"
    assert steps_of(events_of(tmp_path / "run")) == [1, 2]


def test_a_best_student_without_room_is_not_the_best_that_is_reported(
    tmp_path: Path, disk: Callable[[list[int]], None]
) -> None:
    evaluation = quick_document()["evaluation"]
    assert isinstance(evaluation, dict)
    report = {"every_steps": 1, "report_path": evaluation["path"], "primary_metric": "reverse_kl"}
    spec = {"evaluation": evaluation | report, "num_steps": 5, "optimizer": {"learning_rate": 5e-3, "warmup_steps": 0}}
    disk([10**12, 1000, 10**12])
    events = train_here(quick_spec(**spec), tmp_path / "run")
    finished = events[-1]
    assert isinstance(finished, Finished)
    (left_out,) = [warning.step for warning in warnings_of(events)]
    assert left_out not in saved_steps(events)
    assert finished.best_step in saved_steps(events)


def test_a_disk_that_runs_full_in_the_middle_of_a_write_keeps_what_was_there(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk."""
    document = quick_document(num_steps=100_000, checkpoints={"every_steps": 3, "keep_last": 1})
    process = EngineProcess(tmp_path / "run", document)
    events = process.wait_for(lambda events: bool(saved_steps(events)))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (300_000, 300_000))
    assert process.exit_code() == OF_FAILURE["disk_full"] == 17, process.log
    events = events_of(tmp_path / "run")
    failed, newest = events[-1], saved_steps(events)[-1]
    assert isinstance(failed, Failed)
    assert failed.failure == "disk_full"
    assert "ran full while a checkpoint was written" in failed.message
    assert "it needs about 1.3 MiB, so that 3 checkpoints in a row could not be written" in failed.message
    assert [warning.step for warning in warnings_of(events)] == [newest + 3, newest + 6, newest + 9]
    (left,) = (tmp_path / "run/attempts/1/checkpoints").iterdir()
    assert left.name == f"step-{newest}"
    verify_checkpoint(left)
    assert "Traceback" not in process.log


def test_a_stop_without_room_says_that_nothing_was_saved(tmp_path: Path) -> None:
    process = EngineProcess(tmp_path / "run", quick_document(num_steps=100_000), max_file_bytes=300_000)
    process.wait_for(lambda events: len(steps_of(events)) >= 2)
    process.send(15)
    assert process.exit_code() == STOPPED
    events = events_of(tmp_path / "run")
    assert isinstance(events[-1], Stopped)
    assert not events[-1].checkpointed
    assert len(warnings_of(events)) == 1
