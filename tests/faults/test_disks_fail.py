"""Faults 16, 17, 21 and 22: disks are full or cannot be written, checkpoints are damaged, writers die at any point."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from backend.queries.wishes import ask_to_cancel, ask_to_pause, ask_to_resume
from backend.records import Checkpoint
from tests.engine import test_checkpoint_crashes as crashes
from tests.faults.installation import Installation, until
from tests.faults.trial import Trial
from tests.worker import test_resume as damages
from tests.worker.runs import run_row, short_spec

pytestmark = pytest.mark.timeout(240)

_SPEC = short_spec(num_steps=100_000, checkpoints={"every_steps": 10})


def _has_failed_as(installation: Installation, run_id: str, kind: str) -> bool:
    run = run_row(installation.database, run_id)
    assert run.state not in ("failed", "succeeded"), f"it {run.state}: {run.failure_message}"
    return run.state == "queued" and run.failure_kind == kind


@pytest.mark.fault(
    16, "disk full: checkpoint, journal, SQLite",
    "limit on the size of files (RLIMIT_FSIZE) of the engine, twice, and of the supervisor for 4 s",
)  # fmt: skip
def test_16_a_full_disk(fault: Trial, installation: Installation) -> None:
    """The run waits as disk_full and says until when, and goes on from its last whole checkpoint when there is room; a
    database that cannot be written for a while costs nothing."""
    (run_id,) = installation.submit(_SPEC)
    for num_bytes in (300_000, 1):  # less than the weights, less than the journal
        fence = installation.attempts(run_id)[-1].fence if installation.attempts(run_id) else 1
        installation.await_steps(run_id, 12)
        engine = installation.engine_of(run_id)
        fault.inject()
        resource.prlimit(engine.pid, resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
        until(lambda: _has_failed_as(installation, run_id, "disk_full"), "a return to the queue as disk_full")
        assert "It goes on in" in (run_row(installation.database, run_id).failure_message or "")
        until(lambda fence=fence: installation.is_resumed(run_id, fence), "new steps")  # type: ignore[misc]
        fault.recovered()
    supervisor, before = installation.supervisor_of(run_id), installation.num_attempts(run_id)
    until(lambda: run_row(installation.database, run_id).state == "running", "a running run")
    fault.inject()
    old = resource.prlimit(supervisor.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    until(lambda: "disk" in _last_lines(installation.worker.log_path), "a complaint about the disk", 20)
    resource.prlimit(supervisor.pid, resource.RLIMIT_FSIZE, old)
    last_step = run_row(installation.database, run_id).last_step
    until(lambda: run_row(installation.database, run_id).last_step > last_step, "further steps")
    fault.recovered()
    assert installation.num_attempts(run_id) == before
    with installation.database.write() as session:
        ask_to_cancel(session, run_id, checkpoint=True)
    installation.await_state(run_id, "cancelled")
    fault.check(installation, run_id)


def _last_lines(path: Path) -> str:
    return path.read_bytes()[-2000:].decode(errors="replace")


@contextmanager
def _unwritable(folder: Path) -> Iterator[None]:
    """A folder in which nothing can be made; root is held by the immutable flag alone."""
    is_root = os.geteuid() == 0
    make, mend = (["chattr", "+i"], ["chattr", "-i"]) if is_root else (["chmod", "a-w"], ["chmod", "u+w"])
    subprocess.run([*make, str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run([*mend, str(folder)], check=True)


@pytest.mark.fault(17, "run folder cannot be written", "chattr +i (chmod a-w where tests do not run as root)")
def test_17_a_folder_that_cannot_be_written(fault: Trial, installation: Installation) -> None:
    """The run waits and names the folder and the remedy; it goes on when the folder can be written."""
    installation.run_dir.mkdir(exist_ok=True)
    with _unwritable(installation.run_dir):
        fault.inject()
        (run_id,) = installation.submit(short_spec())
        until(lambda: _has_failed_as(installation, run_id, "folder_unwritable"), "a return to the queue", 30)
        message = run_row(installation.database, run_id).failure_message or ""
        assert str(installation.run_dir) in message
        assert "make it writable for the worker" in message
    installation.await_end(run_id)
    fault.recovered()
    fault.check(installation, run_id)


_DAMAGE = ("truncated", "flipped bit", "missing file", "extra file", "another run", "another tokenizer")


@pytest.mark.fault(21, "damaged checkpoints", f"the six newest of a paused run: {', '.join(_DAMAGE)}")
def test_21_damaged_checkpoints_are_passed_over(fault: Trial, installation: Installation) -> None:
    """Each is found, marked with what is wrong with it, and an older one that is whole is used."""
    (run_id,) = installation.submit(short_spec(num_steps=5000, checkpoints={"every_steps": 5, "keep_last": 9}))
    installation.await_steps(run_id, 50)
    with installation.database.write() as session:
        ask_to_pause(session, run_id)
    installation.await_state(run_id, "paused")
    newest_first = installation.checkpoints(run_id)
    assert len(newest_first) > len(_DAMAGE)
    for kind, checkpoint in zip(_DAMAGE, newest_first, strict=False):
        fault.inject()
        attempt_folder = installation.run_dir / run_id / "attempts" / str(checkpoint.fence)
        damages.DAMAGE[kind][0](attempt_folder / checkpoint.path)
    with installation.database.write() as session:
        ask_to_resume(session, run_id)
    installation.doorbell.ring_run(run_id)
    until(lambda: installation.is_resumed(run_id, 1), "new steps")
    fault.recovered()
    assert installation.attempts(run_id)[-1].resumed_from_step == newest_first[len(_DAMAGE)].step
    with installation.database.write() as session:
        found = select(Checkpoint.damage).where(Checkpoint.run_id == run_id, Checkpoint.damage.is_not(None))
        assert len(session.scalars(found).all()) == len(_DAMAGE)
        ask_to_pause(session, run_id)
    installation.await_state(run_id, "paused")
    fault.check(installation, run_id)


@pytest.mark.fault(
    22, "writer dies at any point of a checkpoint", "a process ended before and behind each fsync, rename and mkdir"
)
def test_22_a_writer_that_dies_at_any_point(fault: Trial, tmp_path: Path) -> None:
    """What is opened afterwards is the newest committed checkpoint, whole; nothing half-made is taken for one."""
    crashes.save(tmp_path / "committed", 1)
    crashes.save(tmp_path / "committed", 2)
    found = set()
    for is_behind in (False, True):
        for at in range(1, 100):
            run = Path(shutil.copytree(tmp_path / "committed", tmp_path / f"run-{at}-{is_behind}"))
            fault.record.tried += 1
            code = crashes.exit_code_of_child(run, 3, at, is_behind)
            assert code in (crashes._CRASHED, crashes._SURVIVED)
            found.add(crashes.found_after_crash(run))
            if code == crashes._SURVIVED:
                break
    assert found == {2, 3}
