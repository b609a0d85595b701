"""Metric points that 20 workers record per second, as JSON: `python -m benchmarks.recorded_points [SECONDS]`.

The shape of MLflow-Go's load profile: 20 users, 30 s, each in a closed loop, batches of 10 and of 100 metrics. A user
is a process with a claimed run; a batch is a step that an engine wrote into its journal, recorded by worker.recorder in a
transaction of its own. In a third profile ten steps wait each time, as behind a fast engine, since a supervisor looks four
times a second. Points are rows of `metrics`, those that each step has beside the batch not counted.
"""

import json
import multiprocessing
import multiprocessing.synchronize
import random
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from backend.database import Database
from backend.queries.claims import Claim, claim_run
from benchmarks.load_installation import DATABASES, fresh_database, percentile, queue_runs
from engine.events import Started, StepDone
from engine.flops import FlopLedger
from worker.lease import DATABASE_OUTAGES
from worker.recorder import Recorder

USERS = 20
PROFILES = ((10, 1), (100, 1), (100, 10))
"""Metrics of a step, and steps of a transaction."""
_HORIZON = 8


def main() -> None:
    """Load both databases with both sizes in turn, print what was recorded."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    results = []
    for batch, num_steps in PROFILES:
        for kind in DATABASES:
            with fresh_database(kind) as (folder, url):
                latencies, elapsed, cpu_seconds = _loaded(url, folder, batch, num_steps, seconds)
            results.append(
                {
                    "database": kind,
                    "batch": batch,
                    "steps": num_steps,
                    "points_per_second": round(len(latencies) * batch * num_steps / elapsed),
                    "cpu_milliseconds": round(1000 * cpu_seconds / len(latencies), 2),
                    "p50_milliseconds": round(1000 * percentile(latencies, 50), 1),
                    "p95_milliseconds": round(1000 * percentile(latencies, 95), 1),
                }
            )
    print(json.dumps({"users": USERS, "seconds": seconds, "results": results}))


def _loaded(url: str, folder: Path, batch: int, num_steps: int, seconds: float) -> tuple[list[float], float, float]:
    """Seconds that each transaction took, of all users; the time that all of it took; CPU seconds of the users."""
    database = Database(url)
    queue_runs(database, USERS)
    claims = []
    for user in range(USERS):
        with database.write() as session:
            claimed = claim_run(session, owner=f"user:0:{user}:0", host="load", boot_id="")
        assert claimed is not None
        claims.append(claimed)
    database.close()  # before the fork: no connection is shared
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(USERS + 1)
    pipes, users = [], []
    for claim in claims:
        receiving, sending = context.Pipe(duplex=False)
        users.append(
            context.Process(target=_use, args=(url, folder, claim, (batch, num_steps), seconds, barrier, sending))
        )
        pipes.append(receiving)
        users[-1].start()
    barrier.wait()
    began = time.monotonic()
    answers = [pipe.recv() for pipe in pipes]
    elapsed = time.monotonic() - began
    for user in users:
        user.join()
    return [one for latencies, _ in answers for one in latencies], elapsed, sum(cpu for _, cpu in answers)


def _use(
    url: str,
    folder: Path,
    claim: Claim,
    profile: tuple[int, int],
    seconds: float,
    barrier: multiprocessing.synchronize.Barrier,
    pipe: Connection,
) -> None:
    database = Database(url)
    recorder = Recorder(database, claim, folder / claim.run_id)
    journal = recorder.attempt_folder(claim.fence) / "events.jsonl"
    journal.parent.mkdir(parents=True)
    values = random.Random(claim.run_id)
    with journal.open("a") as file:
        started = Started(
            time=time.time(), attempt=1, pid=1, device="cpu", precision="float32", num_steps=1_000_000, versions={}
        )
        file.write(started.model_dump_json() + "\n")
        file.flush()
        recorder.advance()
        barrier.wait()
        (batch, num_steps), cpu_seconds = profile, 0.0
        until, latencies, step = time.monotonic() + seconds, [], 0
        while time.monotonic() < until:
            lines = [_step(step + 1 + number, batch, values).model_dump_json() for number in range(num_steps)]
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            step += num_steps
            began, cpu_began = time.perf_counter(), time.process_time()
            _record(recorder)
            latencies.append(time.perf_counter() - began)
            cpu_seconds += time.process_time() - cpu_began
    pipe.send((latencies, cpu_seconds))
    database.close()


def _record(recorder: Recorder) -> None:
    """Record what waits, as a supervisor does: a database that is locked for ten seconds is asked again."""
    while True:
        try:
            assert recorder.advance()
            return
        except DATABASE_OUTAGES:
            continue


def _step(step: int, batch: int, values: random.Random) -> StepDone:
    return StepDone(
        time=time.time(),
        step=step,
        horizon=_HORIZON,
        metrics={f"metric_{number:03}": values.random() for number in range(batch)},
        position_loss=[values.random() for _ in range(_HORIZON)],
        position_count=[16] * _HORIZON,
        flops=FlopLedger(rollout=1e9 * step),
        executed_flops=1e9 * step,
        seconds={"total": 0.1},
    )


if __name__ == "__main__":
    main()
