"""Broker, worker and control process of one home, each a service that a test can freeze, kill and start again."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import redis
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from backend.database import Database
from backend.doorbell import Doorbell
from backend.queries.wishes import ask_to_cancel
from backend.records import Attempt, Checkpoint
from backend.run_states import ENDED_STATES
from backend.tables import Run, Worker
from engine.spec import RunSpec
from incipit.stack.broker import answers, broker_service, broker_url
from incipit.stack.service import Service
from tests.worker.runs import queue_runs, run_row
from worker.engine_process import engine_command

PATIENCE_SECONDS = 120.0
LEASE_SECONDS = 12.0
STALL_SECONDS = 15.0
# Short times, so that a fault takes seconds; the ratios of the lease's parts stay those of production.
QUICK = {
    "INCIPIT_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
    "INCIPIT_STALL_SECONDS": f"{STALL_SECONDS:g}",
    "INCIPIT_RETRY_SECONDS": "1",
    "INCIPIT_SLOTS": "2",
}


def until(holds: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Return as soon as `holds()`; AssertionError with `what` otherwise."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.05)


class Installation:
    """`with Installation(home, url) as installation:` its services run; behind the block none of them does."""

    def __init__(self, home: Path, database_url: str, **settings: str) -> None:
        """`settings` are environment variables of worker and control process beside QUICK."""
        (home / "logs").mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("INCIPIT_")}
        self.home = home
        self.run_dir = home / "runs"
        self.database = Database(database_url)
        self.broker, self.socket = broker_service(home, inherited)
        self.environment = inherited | QUICK | settings | {
            "INCIPIT_HOME": str(home),
            "INCIPIT_DATABASE_URL": database_url,
            "INCIPIT_BROKER_URL": broker_url(self.socket),
            "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        self.worker = self.service("worker", "worker", stop_seconds=90)
        self.control = self.service("control", "worker.control")
        self.doorbell = Doorbell(broker_url(self.socket))

    def __enter__(self) -> "Installation":
        self.mend()
        return self

    def __exit__(self, *_: object) -> None:
        for service in (self.worker, self.control, self.broker):
            service.stop(seconds=5)
        self.doorbell.close()
        self.database.close()

    def service(self, name: str, module: str, *, stop_seconds: float = 10.0) -> Service:
        """A process of this installation, not yet started."""
        command = [engine_command([])[0], "-P", "-m", module]
        log_path = self.home / "logs" / f"{name}.log"
        return Service(name, command, environment=self.environment, log_path=log_path, stop_seconds=stop_seconds)

    def mend(self) -> None:
        """Start what is not running, as a service manager does, and return when all of it is at work."""
        for service in (self.broker, self.worker, self.control):
            if service.pid is None or service.exit_code() is not None:
                service.kill()
                service.start()
        until(lambda: answers(self.socket), "an answer of the broker")
        until(self._worker_is_there, "the worker's first heartbeat")

    def submit(self, *specs: RunSpec) -> list[str]:
        """Queue runs and ring for each, as the API does; their ids."""
        run_ids = queue_runs(self.database, *specs)
        for run_id in run_ids:
            self.doorbell.ring_run(run_id)
        return run_ids

    def state_of(self, run_id: str) -> str:
        return str(run_row(self.database, run_id).state)

    def await_steps(self, run_id: str, num_steps: int) -> None:
        """Return when the run's present attempt is at work and has recorded so many steps."""

        def is_there() -> bool:
            run = run_row(self.database, run_id)
            assert run.state not in ENDED_STATES, f"it {run.state} before: {run.failure_message}"
            return run.state == "running" and run.last_step >= num_steps

        try:
            until(is_there, f"step {num_steps}")
        except AssertionError as error:
            run, attempts = run_row(self.database, run_id), self.attempts(run_id)
            engines = [(attempt.fence, attempt.pid, attempt.ended_at) for attempt in attempts]
            error.add_note(f"{run.state} at step {run.last_step}; attempts {engines}; {self.worker.last_log_line()}")
            raise

    def await_state(self, run_id: str, *states: str, seconds: float = PATIENCE_SECONDS) -> None:
        until(lambda: self.state_of(run_id) in states, f"{' or '.join(states)} of {self.state_of(run_id)}", seconds)

    def await_end(self, *run_ids: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Return when all of these runs have succeeded; AssertionError as soon as one fails."""

        def have_ended() -> bool:
            runs = [run_row(self.database, run_id) for run_id in run_ids]
            for run in runs:
                assert run.state not in ("failed", "cancelled"), f"it {run.state}: {run.failure_message}"
            return all(run.state == "succeeded" for run in runs)

        until(have_ended, f"the end of {len(run_ids)} runs", seconds)

    def attempts(self, run_id: str) -> list[Attempt]:
        with self.database.read() as session:
            return list(session.scalars(select(Attempt).where(Attempt.run_id == run_id).order_by(Attempt.fence)))

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        """Those in the list, newest first."""
        with self.database.read() as session:
            listed = select(Checkpoint).where(Checkpoint.run_id == run_id, Checkpoint.removed_at.is_(None))
            return list(session.scalars(listed.order_by(Checkpoint.step.desc())))

    def engine_of(self, run_id: str) -> psutil.Process:
        """The engine of the run's newest attempt."""
        pid = self.attempts(run_id)[-1].pid
        assert pid is not None
        return psutil.Process(pid)

    def has_engine(self, run_id: str, num_attempts: int) -> bool:
        """Whether that attempt, the first being 1, has started its engine."""
        attempts = self.attempts(run_id)
        return len(attempts) == num_attempts and attempts[-1].pid is not None

    def supervisor_of(self, run_id: str) -> psutil.Process:
        """The pool child that watches over the run's engine."""
        owner = run_row(self.database, run_id).lease_owner
        assert owner is not None
        return psutil.Process(int(owner.rsplit(":", 3)[2]))

    def num_attempts(self, run_id: str) -> int:
        return len(self.attempts(run_id))

    def is_resumed(self, run_id: str, fence: int) -> bool:
        """Whether a later attempt than `fence` has recorded a step, or brought the run to its end."""
        run = run_row(self.database, run_id)
        newest = self.attempts(run_id)[-1]
        begun = run.state in ("running", "succeeded") and run.last_step > newest.resumed_from_step
        return newest.fence > fence and begun

    def freeze_outside_a_write(self, process: psutil.Process) -> None:
        """SIGSTOP a process at a moment when it does not hold SQLite's write lock, which it would keep while it sleeps."""
        while True:
            process.suspend()
            with self.database.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA busy_timeout=100")
                try:
                    connection.execution_options(begins_immediate=True).exec_driver_sql("SELECT 1")
                    return
                except OperationalError:
                    process.resume()
                finally:
                    connection.rollback()
                    connection.exec_driver_sql("PRAGMA busy_timeout=10000")
            time.sleep(0.05)

    @contextmanager
    def frozen_broker(self) -> Iterator[None]:
        assert self.broker.pid is not None
        os.kill(self.broker.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.broker.pid, signal.SIGCONT)

    def broker_client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket))

    def _worker_is_there(self) -> bool:
        assert self.worker.exit_code() is None, f"the worker ended: {self.worker.last_log_line()}"
        with self.database.read() as session:
            seen = select(func.count()).select_from(Worker).where(Worker.pid == self.worker.pid)
            return bool(session.scalar(seen))

    def active_runs(self) -> list[str]:
        """Runs that have not come to an end, nor wait for a person."""
        with self.database.read() as session:
            wanted = select(Run.id).where(Run.state.not_in([*ENDED_STATES, "paused"]))
            return list(session.scalars(wanted))

    def clear(self) -> None:
        """Cancel what a test that failed has left behind."""
        for run_id in self.active_runs():
            with self.database.write() as session:
                ask_to_cancel(session, run_id, checkpoint=False)
        until(lambda: not self.active_runs(), "the end of what an earlier test left")
