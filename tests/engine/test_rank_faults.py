"""Several processes under a real torchrun: other world sizes, a killed process, a stop, and launchers that find each other."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from engine.checkpoint import newest_checkpoint
from engine.events import CheckpointSaved, Evaluated, Failed, Finished, RunEvent, Started, Stopped
from engine.exit_codes import DONE, OF_FAILURE, STOPPED
from tests.engine.launching import ForkedRanks, TorchRun, free_port
from tests.engine.running import EngineProcess, events_of, quick_document, quick_spec, steps_of, train_here
from tests.engine.test_ranks import assert_same_checkpoint, assert_same_steps

LOCAL = ["--standalone", "--nproc-per-node"]
GONE_SECONDS = 40.0
"""torchrun gives the processes beside a dead one 30 s to end by themselves."""


@pytest.fixture(autouse=True)
def _own_home(home: Path) -> None:
    """Each test measures its own baselines."""


@contextmanager
def torchrun(folder: Path, document: dict[str, object], launch: list[str], *options: str) -> Iterator[TorchRun]:
    started = TorchRun(folder, document, launch, *options)
    try:
        yield started
    finally:
        started.end()


def has_stepped(events: list[RunEvent]) -> bool:
    return len(steps_of(events)) >= 2


@pytest.mark.full
@pytest.mark.parametrize("kind", ["data_parallel", "fully_sharded"])
def test_four_processes_train_what_one_does(tmp_path: Path, kind: str) -> None:
    changes = {"num_steps": 5, "prompts_per_step": 6, "micro_batch_rollouts": 2}
    expected = train_here(quick_spec(**changes), tmp_path / "one")
    document = quick_document(**changes, parallelism={"kind": kind, "num_processes": 4})
    with torchrun(tmp_path / "four", document, [*LOCAL, "4"]) as run:
        assert run.exit_code() == DONE, run.log
    found = events_of(tmp_path / "four")
    assert_same_steps(found, expected)
    last = [event for event in found if isinstance(event, CheckpointSaved)][-1].path
    assert_same_checkpoint(tmp_path / "four/attempts/1" / last, tmp_path / "one/attempts/1" / last)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["data_parallel", "fully_sharded"])
def test_a_run_goes_on_at_another_world_size_to_the_same_weights(tmp_path: Path, kind: str) -> None:
    """Attempts of one, two, four and one processes, two steps each, against one process that takes all eight."""
    shared: dict[str, object] = {"checkpoints": {"every_steps": 2, "keep_last": 9}, "parallelism": {"kind": kind}}
    expected = train_here(quick_spec(num_steps=8, **shared), tmp_path / "whole")
    folder = tmp_path / "parts"
    for attempt, size in enumerate((1, 2, 4, 1), start=1):
        options = [] if attempt == 1 else ["--resume", "newest"]
        # The same run each time, ended behind the checkpoint of its next two steps, as if it had been killed there.
        document = quick_document(num_steps=8, **shared)
        ranks = ForkedRanks(folder, document, size, *options)
        if attempt < 4:
            due = 2 * attempt
            ranks.ranks[0].wait_for(lambda events, due=due: due in saved_steps(events), attempt=attempt)  # type: ignore[misc]
            for rank in ranks.ranks:
                rank.send(signal.SIGKILL)
            ranks.exit_codes()
            remove_after(folder, attempt, due)
        else:
            assert ranks.exit_codes() == [DONE], ranks.logs
    (started,) = [event for event in events_of(folder, 4) if isinstance(event, Started)]
    assert started.resumed_from_step == 6
    assert_same_checkpoint(folder / "attempts/4/checkpoints/step-8", tmp_path / "whole/attempts/1/checkpoints/step-8")
    measured = [
        [event for event in events if isinstance(event, Evaluated)][-1] for events in (events_of(folder, 4), expected)
    ]
    assert measured[0].metrics["reverse_kl"] == pytest.approx(measured[1].metrics["reverse_kl"], abs=2e-6)


def saved_steps(events: list[RunEvent]) -> list[int]:
    return [event.step for event in events if isinstance(event, CheckpointSaved)]


def remove_after(folder: Path, attempt: int, step: int) -> None:
    """Checkpoints that an attempt has written before it was killed, behind the one that the next shall begin with."""
    for path in (folder / "attempts" / str(attempt) / "checkpoints").iterdir():
        if path.name.startswith("step-") and path.name[5:].isdecimal() and int(path.name[5:]) > step:
            shutil.rmtree(path)


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_with_its_cause_and_it_goes_on(tmp_path: Path, victim: int) -> None:
    document = quick_document(num_steps=100_000, checkpoints={"every_steps": 2}, parallelism={"kind": "fully_sharded"})
    with torchrun(tmp_path / "run", document, [*LOCAL, "2"]) as run:
        run.wait_for(lambda events: len(saved_steps(events)) >= 1 and has_stepped(events))
        ranks = run.ranks()
        ranks[victim].kill()
        killed_at = time.monotonic()
        assert run.exit_code() != DONE
        assert not [rank for rank in ranks if rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE]
        assert time.monotonic() - killed_at < GONE_SECONDS
        assert "SIGKILL" in run.log
    failed = [event for event in events_of(tmp_path / "run") if isinstance(event, Failed)]
    if victim == 1:  # the first process lives to tell
        assert [event.failure for event in failed] == ["rank_lost"]
        assert failed[0].message.startswith("Another process of this run is gone or cannot be reached (")
        assert failed[0].message.endswith("Resume from the newest checkpoint.")
    start = newest_checkpoint(tmp_path / "run")
    assert start is not None
    step = int(start.name.removeprefix("step-"))
    with torchrun(tmp_path / "run", document, [*LOCAL, "2"], "--resume", "newest", "--attempt", "2") as again:
        again.wait_for(lambda events: step + 2 in steps_of(events), attempt=2)
        again.process.terminate()
        again.exit_code()


@pytest.mark.full
def test_a_stop_that_the_first_process_reads_ends_all_at_one_step(tmp_path: Path) -> None:
    document = quick_document(num_steps=100_000, parallelism={"kind": "data_parallel"})
    with torchrun(tmp_path / "run", document, [*LOCAL, "2"], "--supervised", "--attempt", "1") as run:
        run.wait_for(has_stepped)
        run.tell({"command": "checkpoint"})
        run.wait_for(lambda events: len(saved_steps(events)) == 1)
        run.tell({"command": "stop", "checkpoint": True})
        run.exit_code()
        events = events_of(tmp_path / "run")
    (stopped,) = [event for event in events if isinstance(event, Stopped)]
    assert stopped.checkpointed
    assert saved_steps(events)[-1] == stopped.step == steps_of(events)[-1]
    assert f"exitcode  : {STOPPED}" in run.log


@pytest.mark.full
def test_the_end_of_the_supervisor_ends_all_processes(tmp_path: Path) -> None:
    document = quick_document(num_steps=100_000, parallelism={"kind": "data_parallel"})
    with torchrun(tmp_path / "run", document, [*LOCAL, "2"], "--supervised", "--attempt", "1") as run:
        run.wait_for(has_stepped)
        ranks = run.ranks()
        run.process.kill()
        run.process.wait()
        _, left = psutil.wait_procs(ranks, timeout=5)
        assert not left


@pytest.mark.full
def test_launchers_on_two_machines_find_each_other(tmp_path: Path) -> None:
    """Two launchers on this machine, which meet as those of two machines do: each starts one of the run's processes."""
    document = quick_document(num_steps=3, parallelism={"kind": "fully_sharded"})
    expected = train_here(quick_spec(num_steps=3), tmp_path / "one")
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "17"]
    meeting += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    with (
        torchrun(tmp_path / "run", document, meeting) as first,
        torchrun(tmp_path / "run", document, meeting) as second,
    ):
        assert [first.exit_code(), second.exit_code()] == [DONE, DONE], first.log + second.log
    events = events_of(tmp_path / "run")
    assert_same_steps(events, expected)
    assert len([event for event in events if isinstance(event, Finished)]) == 1


def test_a_process_that_is_killed_is_named_by_the_one_that_waits_for_it(tmp_path: Path) -> None:
    """The same without torchrun: what the first process says does not depend on a launcher that looks after it."""
    document = quick_document(num_steps=100_000, parallelism={"kind": "data_parallel"})
    ranks = ForkedRanks(tmp_path / "run", document, 2)
    first, second = ranks.ranks
    first.wait_for(has_stepped)
    os.kill(second.pid, signal.SIGKILL)
    assert first.exit_code() == OF_FAILURE["rank_lost"] == 21, ranks.logs
    (failed,) = [event for event in events_of(tmp_path / "run") if isinstance(event, Failed)]
    assert failed.failure == "rank_lost"
    assert first.log.strip().splitlines()[-1] == failed.message


def test_one_process_resumes_what_two_have_begun(tmp_path: Path) -> None:
    document = quick_document(num_steps=4, checkpoints={"every_steps": 2}, parallelism={"kind": "fully_sharded"})
    ranks = ForkedRanks(tmp_path / "run", document, 2)
    assert ranks.exit_codes() == [DONE, DONE], ranks.logs
    shutil.rmtree(tmp_path / "run/attempts/1/checkpoints/step-4")
    alone = EngineProcess(tmp_path / "run", document, "--resume", "newest")
    assert alone.exit_code() == DONE, alone.log
    whole = tmp_path / "whole"
    train_here(quick_spec(num_steps=4, checkpoints={"every_steps": 2}), whole)
    last = "checkpoints/step-4"
    assert_same_checkpoint(tmp_path / "run/attempts/2" / last, whole / "attempts/1" / last)


def test_a_stop_that_one_process_hears_while_all_sample_ends_all(tmp_path: Path) -> None:
    """A signal to the second process in the middle of the baselines, which are long: no step is begun."""
    evaluation = {
        "path": "builtin:tiny/data/dev.jsonl",
        "num_prompts": 64,
        "scorer": {"kind": "after_marker", "marker": "#"},
    }
    document = quick_document(
        max_completion_tokens=224, evaluation=evaluation, parallelism={"kind": "fully_sharded"}, num_steps=100_000
    )
    ranks = ForkedRanks(tmp_path / "run", document, 2)
    ranks.ranks[0].wait_for(lambda events: any(getattr(event, "phase", "") == "baseline" for event in events))
    ranks.ranks[1].send(signal.SIGTERM)
    assert ranks.exit_codes() == [STOPPED, STOPPED], ranks.logs
    events = events_of(tmp_path / "run")
    assert isinstance(events[-1], Stopped)
    assert not steps_of(events)
    assert not [event for event in events if isinstance(event, Evaluated) and event.subject == "teacher"]


@pytest.mark.full
def test_the_launcher_of_a_worker_ends_like_an_engine(tmp_path: Path) -> None:
    """With the status of the first process that ended, where torchrun itself has 1 for all."""
    document = quick_document(num_steps=100_000, parallelism={"kind": "data_parallel"})
    spec = tmp_path / "spec.json"
    statuses = []
    for changes, signalled in (({}, True), ({"student": {"path": str(tmp_path / "none")}}, False)):
        spec.write_text(json.dumps(document | changes))
        folder = tmp_path / ("stopped" if signalled else "failed")
        command = [sys.executable, "-P", "-m", "engine.launch", "2", "train", "--spec", str(spec), "--out", str(folder)]
        with subprocess.Popen(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
        ) as launcher:
            if signalled:
                end = time.monotonic() + 120
                while not has_stepped(events_of(folder)):
                    assert time.monotonic() < end
                    time.sleep(0.1)
                launcher.terminate()
            _, said = launcher.communicate(timeout=120)
        statuses.append(launcher.returncode)
    assert statuses == [STOPPED, OF_FAILURE["bad_model"]]
    (stopped,) = [event for event in events_of(tmp_path / "stopped") if isinstance(event, Stopped)]
    assert stopped.checkpointed
    assert len(said.strip().splitlines()) == 2, said  # one sentence from each process, and nothing of torchrun's
