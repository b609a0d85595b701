"""`python -m tests.faults.soak --minutes 10 --seed 7`: short runs without end, and a random fault each half minute.

At the end every promise is checked on everything that was recorded, and docs/reliability.md gets a line.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests import databases
from tests.faults.installation import Installation, until
from tests.faults.promises import broken_promises, engines, repeated_steps, stale_steps
from tests.faults.reliability import add_soak, commit_now
from tests.worker.runs import run_row, short_spec

_FAULT_SECONDS = 30.0
_NUM_WAITING = 3  # runs that are queued or at work at any time: more than there are slots
_PATIENCE_SECONDS = 240.0


class Nemesis:
    """Breaks one thing at a time. What it kills, `Installation.mend` starts again, as a service manager does."""

    def __init__(self, installation: Installation, seed: int) -> None:
        self.installation = installation
        self.random = random.Random(seed)
        self.num_faults = 0
        self._faults: list[Callable[[], str]] = [
            self._kill_engine, self._kill_supervisor, self._kill_worker, self._freeze, self._restart_broker,
            self._flush_broker,
        ]  # fmt: skip

    def strike(self) -> str:
        """Do one of its faults; in words."""
        self.num_faults += 1
        try:
            return self.random.choice(self._faults)()
        except psutil.Error:  # the victim has just come to its own end
            return "nothing: its victim had ended"

    def _engine(self) -> psutil.Process | None:
        found = engines(self.installation.run_dir)
        return self.random.choice(found) if found else None

    def _kill_engine(self) -> str:
        engine = self._engine()
        if engine is None:
            return "nothing: no engine was at work"
        engine.kill()
        return "an engine killed"

    def _kill_supervisor(self) -> str:
        engine = self._engine()
        parent = engine.parent() if engine else None
        if parent is None:
            return "nothing: no supervisor was at work"
        parent.kill()
        return "a supervisor killed"

    def _kill_worker(self) -> str:
        assert self.installation.worker.pid is not None
        os.kill(self.installation.worker.pid, signal.SIGKILL)
        return "the worker killed"

    def _freeze(self) -> str:
        """Of an engine or its supervisor: short of the lease, and beyond it."""
        engine = self._engine()
        if engine is None:
            return "nothing: no engine was at work"
        victim = self.random.choice([engine, engine.parent() or engine])
        seconds = self.random.choice([5, 25])
        victim.suspend()
        time.sleep(seconds)
        victim.resume()
        return f"{'the engine' if victim is engine else 'the supervisor'} frozen for {seconds} s"

    def _restart_broker(self) -> str:
        assert self.installation.broker.pid is not None
        os.kill(self.installation.broker.pid, signal.SIGKILL)
        until(lambda: self.installation.broker.exit_code() is not None, "the broker's end")
        return "the broker killed"

    def _flush_broker(self) -> str:
        with self.installation.broker_client() as client:
            client.flushall()
        return "the broker emptied"


def soak(minutes: float, seed: int) -> bool:
    """Whether all promises were kept."""
    commit = commit_now()
    with tempfile.TemporaryDirectory(prefix="incipit-soak-") as folder:
        home = Path(folder) / "home"
        with Installation(home, databases.sqlite_copy(home)) as installation:
            nemesis = Nemesis(installation, seed)
            run_ids = _run_under_attack(installation, nemesis, minutes)
            until(lambda: not installation.active_runs(), "the end of all runs", _PATIENCE_SECONDS)
            return _judged(installation, nemesis, run_ids, minutes, seed, commit)


def _run_under_attack(installation: Installation, nemesis: Nemesis, minutes: float) -> list[str]:
    run_ids: list[str] = []
    end, next_fault = time.monotonic() + 60 * minutes, time.monotonic() + _FAULT_SECONDS
    while time.monotonic() < end:
        installation.mend()
        for _ in range(_NUM_WAITING - len(installation.active_runs())):
            num_steps = nemesis.random.randint(20, 400)
            run_ids += installation.submit(short_spec(num_steps=num_steps, checkpoints={"every_steps": 10}))
        if time.monotonic() > next_fault:
            print(f"{nemesis.num_faults + 1:4}  {nemesis.strike()}", flush=True)
            next_fault += _FAULT_SECONDS
        time.sleep(0.5)
    installation.mend()
    return run_ids


def _judged(
    installation: Installation, nemesis: Nemesis, run_ids: list[str], minutes: float, seed: int, commit: str
) -> bool:
    broken = broken_promises(installation.database, installation.run_dir, run_ids)
    runs = [run_row(installation.database, run_id) for run_id in run_ids]
    # A stalled engine fails its run by design; every other run has to succeed.
    broken += [f"Run {run.id} {run.state}: {run.failure_message}" for run in runs
               if run.state != "succeeded" and run.failure_kind != "stalled"]  # fmt: skip
    with installation.database.read() as session:
        twice = sum(len(stale_steps(session, run_id)) for run_id in run_ids)
    for sentence in broken:
        print(sentence, file=sys.stderr)
    row = add_soak(
        commit=commit,
        minutes=minutes,
        seed=seed,
        num_runs=len(runs),
        num_faults=nemesis.num_faults,
        lost=sum(repeated_steps(installation.run_dir, run_id) for run_id in run_ids),
        twice=twice,
        result="holds" if not broken else f"**fails**: {len(broken)} promises broken",
    )
    print(row)
    return not broken


def main() -> None:
    """Read the command line; exit status 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    print(f"{arguments.minutes:g} minutes with --seed {arguments.seed}", flush=True)
    sys.exit(0 if soak(arguments.minutes, arguments.seed) else 1)


if __name__ == "__main__":
    main()
