"""Runs of several processes below a worker: started by torchrun, stopped, killed, and ended as one process would be."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

from backend.database import Database
from backend.queries.wishes import ask_to_pause, ask_to_resume
from engine.exit_codes import OF_FAILURE
from tests import databases
from tests.worker.runs import once, recorded_steps, run_row, short_spec
from tests.worker.supervising import supervise
from worker.settings import WorkerSettings
from worker.slots import slots_of_this_machine
from worker.workplace import Workplace

TWO = {"kind": "data_parallel", "num_processes": 2}


@pytest.fixture
def place(home: Path) -> Iterator[Workplace]:
    opened = Database(databases.sqlite_copy(home))
    settings = WorkerSettings(stop_seconds=30, retry_seconds=0)
    yield Workplace(opened, home, home / "runs", settings, lambda: False)
    opened.close()


def trainers(run_id: str) -> list[psutil.Process]:
    """The processes that train a run."""
    found = []
    for one in psutil.process_iter():
        try:
            if one.status() != psutil.STATUS_ZOMBIE and run_id in " ".join(one.cmdline()) and "RANK" in one.environ():
                found.append(one)
        except psutil.Error:
            continue
    return found


def once_stepping(place: Workplace, num_steps: int, act: Callable[[str], None]) -> AbstractContextManager[None]:
    """Beside the block: as soon as so many steps of the run are recorded, `act(run id)`."""
    return once(
        place.database, lambda run_id: len(recorded_steps(place.database, run_id)) >= num_steps, act, seconds=200
    )


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")
def test_a_run_of_two_processes_succeeds_like_one_of_one(place: Workplace) -> None:
    attempt = supervise(place, short_spec(num_steps=6, parallelism=TWO))
    run = run_row(place.database, attempt.run_id)
    assert (run.state, run.last_step, run.failure_message) == ("succeeded", 6, None)
    assert attempt.exit_code == 0
    assert recorded_steps(place.database, attempt.run_id) == [1, 2, 3, 4, 5, 6]
    assert not trainers(attempt.run_id)


@pytest.mark.full
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")
def test_a_pause_and_a_kill_reach_all_processes_and_the_run_goes_on(place: Workplace) -> None:
    spec = short_spec(num_steps=100_000, checkpoints={"every_steps": 5}, parallelism=TWO)

    def pause(run_id: str) -> None:
        with place.database.write() as session:
            ask_to_pause(session, run_id)

    def kill_one(run_id: str) -> None:
        (victim,) = [one for one in trainers(run_id) if one.environ()["RANK"] == "1"]
        victim.kill()

    with once_stepping(place, 2, pause):
        attempt = supervise(place, spec)
    run = run_row(place.database, attempt.run_id)
    assert run.state == "paused", run.failure_message
    assert not trainers(attempt.run_id)
    with place.database.write() as session:
        ask_to_resume(session, attempt.run_id)
    with once_stepping(place, run.last_step + 3, kill_one):
        attempt = supervise(place)
    run = run_row(place.database, attempt.run_id)
    assert attempt.exit_code == OF_FAILURE["rank_lost"]
    assert (run.state, run.failure_kind) == ("queued", "rank_lost")
    assert attempt.resumed_from_step > 0
    assert not trainers(attempt.run_id)


def test_a_run_of_more_processes_than_there_is_room_for_is_refused_in_one_sentence(place: Workplace) -> None:
    spec = short_spec(prompts_per_step=64, parallelism={"kind": "fully_sharded", "num_processes": 64})
    attempt = supervise(place, spec)
    run = run_row(place.database, attempt.run_id)
    assert (run.state, run.failure_kind) == ("failed", "bad_spec")
    assert run.failure_message == (
        f"parallelism.num_processes is 64 but this worker's machine has {os.cpu_count()} cores and no GPU; lower it, or use a "
        "larger machine."
    )
    assert attempt.pid is None


def test_slots_take_as_many_gpus_as_they_are_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    pairs = slots_of_this_machine(None, gpus_per_slot=2)
    assert [slot.environment()["CUDA_VISIBLE_DEVICES"] for slot in pairs] == ["0,1", "2,3"]
    assert [slot.name for slot in pairs] == ["gpu0", "gpu2"]
    assert [slot.max_processes for slot in pairs] == [2, 2]
    (all_of_them,) = slots_of_this_machine(None, gpus_per_slot=8)
    assert all_of_them.max_processes == 5
    assert all_of_them.too_small_for(5, "auto") is None
    # What a run needs where it runs on the CPU is cores, whatever the worker's GPUs.
    cores = os.cpu_count() or 1
    assert pairs[0].too_small_for(cores, "cpu") is None
    assert f"has {cores} cores; lower it" in (pairs[0].too_small_for(cores + 1, "cpu") or "")
    assert all_of_them.too_small_for(8, "auto") == (
        "parallelism.num_processes is 8 but a slot of this worker has 5 of its GPUs; lower it, or start the worker with "
        "INCIPIT_GPUS_PER_SLOT=8 on a machine that has so many."
    )
    assert [slot.gpu for slot in slots_of_this_machine(None)] == ["0", "1", "2", "3", "4"]
