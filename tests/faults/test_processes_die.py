"""Faults 1 to 6, 18, 19 and 27: processes are killed, frozen and asked to end, in the middle of runs."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import redis

from backend.database import Database
from backend.queries.wishes import ask_to_cancel, ask_to_pause, ask_to_resume, ask_to_retry
from backend.settings import Settings
from engine.spec import RunSpec
from tests.faults.installation import STALL_SECONDS, Installation, until
from tests.faults.promises import broken_promises, repeated_steps
from tests.faults.trial import Trial
from tests.stack import test_local_stack as stack
from tests.worker.runs import run_row, short_spec

pytestmark = pytest.mark.timeout(240)

_NUM_STEPS = 120
_RESUMED_SECONDS = 75.0


def _spec(num_steps: int = _NUM_STEPS, **changes: object) -> RunSpec:
    return short_spec(num_steps=num_steps, checkpoints={"every_steps": 10}, **changes)


def _is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.fault(1, "engine killed", "kill -9")
def test_01_a_killed_engine_is_resumed_and_ends_with_the_weights_of_an_undisturbed_run(
    fault: Trial, installation: Installation
) -> None:
    """The run goes on from its last checkpoint, and its last weights are those of an undisturbed run, bit for bit."""
    undisturbed, victim = installation.submit(_spec(), _spec())
    installation.await_steps(victim, 15)
    fault.inject()
    installation.engine_of(victim).kill()
    until(lambda: installation.is_resumed(victim, 1), "new steps", _RESUMED_SECONDS)
    fault.recovered()
    installation.await_end(undisturbed, victim)
    assert [installation.num_attempts(run_id) for run_id in (undisturbed, victim)] == [1, 2]
    assert installation.attempts(victim)[1].resumed_from_step >= 10
    weights = [
        next(
            file["sha256"] for file in installation.checkpoints(run_id)[0].files if file["name"] == "model.safetensors"
        )
        for run_id in (undisturbed, victim)
    ]
    assert weights[0] == weights[1]
    fault.check(installation, undisturbed, victim)


def _supervisor_dies(installation: Installation, run_id: str) -> None:
    installation.supervisor_of(run_id).kill()


def _worker_dies(installation: Installation, _run_id: str) -> None:
    assert installation.worker.pid is not None
    os.kill(installation.worker.pid, signal.SIGKILL)


def _everything_dies(installation: Installation, _run_id: str) -> None:
    for service in (installation.control, installation.worker, installation.broker):
        service.kill()


def _a_run_outlives(fault: Trial, installation: Installation, kill: object) -> None:
    """The engine is dead within a second, the run goes on within 75 s, and no step is lost or there twice."""
    assert callable(kill)
    (run_id,) = installation.submit(_spec())
    installation.await_steps(run_id, 15)
    engine = installation.engine_of(run_id)
    fault.inject()
    kill(installation, run_id)
    until(lambda: _is_gone(engine), "the engine's end", 1)
    installation.mend()
    until(lambda: installation.is_resumed(run_id, 1), "new steps", _RESUMED_SECONDS)
    fault.recovered()
    installation.await_end(run_id)
    assert installation.attempts(run_id)[-1].resumed_from_step >= 10
    fault.check(installation, run_id)


@pytest.mark.fault(2, "supervisor (the worker's pool child) killed", "kill -9")
def test_02_a_killed_supervisor(fault: Trial, installation: Installation) -> None:
    """Its engine is dead within a second, and the control process, which knows that it is dead, waits for no lease."""
    _a_run_outlives(fault, installation, _supervisor_dies)


@pytest.mark.fault(3, "worker killed", "kill -9")
def test_03_a_killed_worker(fault: Trial, installation: Installation) -> None:
    """Pool children and engine are dead within a second; the next worker goes on with the run."""
    _a_run_outlives(fault, installation, _worker_dies)


@pytest.mark.fault(4, "worker, control process and broker killed at once", "kill -9 of their process groups")
def test_04_everything_killed(fault: Trial, installation: Installation) -> None:
    """What is on the disk is enough to go on from."""
    _a_run_outlives(fault, installation, _everything_dies)


@pytest.mark.fault(
    5,
    "supervisor frozen for longer than its lease",
    "SIGSTOP outside a write (inside one SQLite stays locked until it wakes), SIGCONT",
)
def test_05_a_frozen_supervisor_is_fenced(fault: Trial, installation: Installation) -> None:
    """Another takes the run over; the first one's engine is killed when it wakes up, and nothing of it is recorded."""
    (run_id,) = installation.submit(_spec(10_000, prompts_per_step=16, prefix={"kind": "constant", "tokens": 16}))
    installation.await_steps(run_id, 11)
    supervisor, engine = installation.supervisor_of(run_id), installation.engine_of(run_id)
    installation.freeze_outside_a_write(supervisor)
    fault.inject()
    try:
        until(lambda: installation.is_resumed(run_id, 1), "new steps", _RESUMED_SECONDS)
        fault.recovered()
        assert not _is_gone(engine), "two engines are at work now, of which one counts"
    finally:
        supervisor.resume()
    until(lambda: _is_gone(engine), "the first engine's end", 5)
    first, second = installation.attempts(run_id)
    assert (first.outcome, second.outcome) == ("lost", None)
    with installation.database.write() as session:
        ask_to_cancel(session, run_id, checkpoint=True)
    installation.await_state(run_id, "cancelled")
    assert installation.checkpoints(run_id)[0].fence == second.fence
    fault.check(installation, run_id)


@pytest.mark.fault(6, "engine frozen", "SIGSTOP")
def test_06_a_frozen_engine_is_ended_and_its_run_can_be_retried(fault: Trial, installation: Installation) -> None:
    """It is ended after the stall time, the run fails as stalled, and goes on from its checkpoint when a person says so."""
    (run_id,) = installation.submit(_spec())
    installation.await_steps(run_id, 15)
    engine = installation.engine_of(run_id)
    fault.inject()
    engine.suspend()
    installation.await_state(run_id, "failed", seconds=STALL_SECONDS + 15)
    assert run_row(installation.database, run_id).failure_kind == "stalled"
    assert _is_gone(engine)
    with installation.database.write() as session:
        ask_to_retry(session, run_id, from_scratch=False)
    installation.doorbell.ring_run(run_id)
    until(lambda: installation.is_resumed(run_id, 1), "new steps")
    fault.recovered()
    installation.await_end(run_id)
    fault.check(installation, run_id)


@pytest.mark.fault(18, "worker asked to end", "SIGTERM, as `docker compose stop` sends it")
def test_18_a_worker_that_is_asked_to_end_loses_no_step(fault: Trial, installation: Installation) -> None:
    """Its run is in the queue with a checkpoint of its last step, which counts as no attempt, and goes on from there."""
    (run_id,) = installation.submit(short_spec(num_steps=400, checkpoints={"every_steps": 400}))
    installation.await_steps(run_id, 15)
    fault.inject()
    assert installation.worker.stop(seconds=90), "it ended by itself"
    stopped = run_row(installation.database, run_id)
    assert (stopped.state, stopped.attempt, stopped.not_before) == ("queued", 0, None)
    assert installation.checkpoints(run_id)[0].step == stopped.last_step
    installation.mend()
    until(lambda: installation.is_resumed(run_id, 1), "new steps", _RESUMED_SECONDS)
    fault.recovered()
    installation.await_end(run_id)
    assert repeated_steps(installation.run_dir, run_id) == 0
    fault.check(installation, run_id)


@pytest.mark.fault(27, "engine killed while its run is being paused", "SIGSTOP, pause, kill -9, resume")
def test_27_a_run_whose_engine_dies_while_it_is_paused(fault: Trial, installation: Installation) -> None:
    """It is paused as asked, stays so, and goes on from its last checkpoint when it is resumed."""
    (run_id,) = installation.submit(_spec())
    installation.await_steps(run_id, 15)
    engine = installation.engine_of(run_id)
    engine.suspend()
    with installation.database.write() as session:
        ask_to_pause(session, run_id)
    installation.await_state(run_id, "pausing")
    fault.inject()
    engine.kill()
    installation.await_state(run_id, "paused", seconds=10)
    time.sleep(1)
    assert installation.state_of(run_id) == "paused"
    with installation.database.write() as session:
        ask_to_resume(session, run_id)
    installation.doorbell.ring_run(run_id)
    until(lambda: installation.is_resumed(run_id, 1), "new steps")
    fault.recovered()
    installation.await_end(run_id)
    fault.check(installation, run_id)


def _broker(home: Path) -> redis.Redis:
    state = stack.read_state(home)
    assert state is not None
    return redis.Redis(unix_socket_path=state.broker_url.removeprefix("redis+socket://").partition("?")[0])


@pytest.mark.fault(19, "launcher of a local stack interrupted twice, then killed", "SIGINT, SIGINT; kill -9")
def test_19_a_launcher_that_ends_in_a_bad_way_leaves_nothing_behind(
    fault: Trial, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process is left, the broker has kept what it was told, and each next start goes on with the run."""
    monkeypatch.setenv("INCIPIT_RETRY_SECONDS", "1")
    settings = Settings(home=home)
    with stack._launched(home) as (launcher, _):
        run_id = stack._submit(home, num_steps=300, checkpoints={"every_steps": 10})
        with _broker(home) as broker:
            broker.set("kept", "yes")
        stack._await(lambda: stack._run(home, run_id)["step"] >= 3, "training")
        time.sleep(1.5)  # Valkey writes to its file each second
        fault.inject()
        launcher.send_signal(signal.SIGINT)
        time.sleep(0.5)
        launcher.send_signal(signal.SIGINT)
        launcher.wait(60)
        stack._await(lambda: not stack._processes(home), "the end of all processes", 10)
        fault.recovered()
    with stack._launched(home) as (launcher, _):
        with _broker(home) as broker:
            assert broker.get("kept") == b"yes"
        stack._await(lambda: stack._run(home, run_id)["state"] == "running", "the run's second attempt")
        fault.inject()
        os.kill(launcher.pid, signal.SIGKILL)
        launcher.wait()
        stack._await(lambda: not stack._processes(home), "the end of all processes", 10)
        fault.recovered()
    with stack._launched(home) as (launcher, _):
        stack._await(lambda: stack._run(home, run_id)["state"] == "succeeded", "the end of the run")
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(60) == 0
    database = Database(settings.sql_url)
    fault.record.steps_lost += repeated_steps(settings.run_dir, run_id)
    assert broken_promises(database, settings.run_dir, [run_id]) == []
    database.close()
