"""A writer that dies at any point leaves the newest committed checkpoint, and nothing that is taken for one.

Slow: a process for each point at which the writer syncs or renames, before it and behind it.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint import TrainerState, load_trainer_state, newest_checkpoint, save_checkpoint, verify_checkpoint
from engine.prefix_state import PrefixState
from engine.staging import is_staging, remove_leftovers
from engine.student import Student
from tests.engine.models import tiny_model, tiny_spec
from tests.forks import FORKS

_POINTS = ("fsync", "rename", "replace", "link", "mkdir")
_CRASHED, _SURVIVED = 77, 0


def step_folder(run: Path, step: int) -> Path:
    return run / "attempts" / "1" / "checkpoints" / f"step-{step}"


def save(run: Path, step: int) -> None:
    state = TrainerState(step=step, prefix=PrefixState(max_completion_tokens=224))
    save_checkpoint(step_folder(run, step), Student(tiny_model(), tiny_spec()), state, attempt=1)


def save_and_crash(run: Path, step: int, at: int, is_behind: bool) -> None:
    """In a child: end the process before or behind the call with number `at` that syncs or renames something."""
    calls = 0

    def crashing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at and not is_behind:
                os._exit(_CRASHED)
            mine = calls
            try:
                return function(*arguments, **named)
            finally:
                if mine == at:
                    os._exit(_CRASHED)

        return call

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # progress bars of transformers
    for name in _POINTS:
        setattr(os, name, crashing(getattr(os, name)))
    save(run, step)
    os._exit(_SURVIVED)


def exit_code_of_child(*arguments: Any) -> int | None:
    child = FORKS.Process(target=save_and_crash, args=arguments)
    child.start()
    child.join(120)
    return child.exitcode


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints of the steps 1 and 2."""
    run = tmp_path_factory.mktemp("committed") / "run"
    save(run, 1)
    save(run, 2)
    return run


def found_after_crash(run: Path) -> int:
    """The step of the checkpoint that a resume starts from; it is whole, and what was left of the crash goes away."""
    newest = newest_checkpoint(run)
    assert newest is not None
    verify_checkpoint(newest)
    step = load_trainer_state(newest).step
    assert newest == step_folder(run, step)
    remove_leftovers(run)
    assert not [path for path in run.rglob("*") if is_staging(path)]
    assert newest_checkpoint(run) == newest
    return step


@pytest.mark.parametrize("damaged_step_3", [False, True], ids=["a new step", "over a damaged folder"])
def test_the_newest_committed_checkpoint_survives_a_crash_at_any_point(
    committed: Path, tmp_path: Path, damaged_step_3: bool
) -> None:
    found: list[int] = []
    for is_behind in (False, True):
        for at in range(1, 100):
            run = tmp_path / f"run-{at}-{is_behind}"
            shutil.copytree(committed, run)
            if damaged_step_3:
                shutil.copytree(step_folder(run, 2), step_folder(run, 3))
                (step_folder(run, 3) / "config.json").unlink()
            code = exit_code_of_child(run, 3, at, is_behind)
            assert code in (_CRASHED, _SURVIVED)
            found.append(found_after_crash(run))
            assert verify_checkpoint(step_folder(run, 2)).step == 2, "the previous one is untouched"
            if code == _SURVIVED:
                assert found[-1] == 3
                break
            shutil.rmtree(run)
        # All files, trainer/, the staging folder and the parent are synced, one or two folders are renamed.
        assert at > 10
        assert set(found) == {2, 3}


def test_after_a_crash_the_same_step_can_be_saved_again(committed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(committed, tmp_path / "run"))
    assert exit_code_of_child(run, 3, 5, False) == _CRASHED
    assert [path.name for path in step_folder(run, 3).parent.iterdir() if is_staging(path)], "a half-written folder"
    save(run, 3)
    assert found_after_crash(run) == 3


def test_the_first_checkpoint_of_a_run_is_there_or_not(tmp_path: Path) -> None:
    for at in (1, 2, 3, 4):  # while the folders above it are made
        run = tmp_path / f"run-{at}"
        assert exit_code_of_child(run, 1, at, True) == _CRASHED
        assert newest_checkpoint(run) is None
        save(run, 1)
        assert found_after_crash(run) == 1
