"""Claims of many workers on PostgreSQL, as JSON: `python -m benchmarks.fleet [RUNS [CLAIMERS]]`.

10,000 runs wait, of 5 projects with 8 people each who all submitted theirs in one go, one after the other; half of the runs need
memory, labels or a GPU that only some of the 200 claimers have. A claimer has a connection of its own, claims a run, holds it
until it comes back for the next, and ends it then. So 200 runs are at work at any time, and each claim and each ending is a
transaction that is synced to disk. The claimers are threads of a few processes on the cores that the database works on, too.
"""

import json
import multiprocessing
import multiprocessing.synchronize
import sys
import threading
import time
from collections import Counter
from multiprocessing.connection import Connection

from sqlalchemy import func, select

from backend.access import Principal
from backend.database import Database
from backend.expansion import PlannedRun
from backend.needs import RunNeeds
from backend.queries.claims import Claim, Ending, claim_run, end_attempt
from backend.queries.experiments import create_experiment
from backend.records import Attempt
from backend.resources import WorkerCapabilities
from backend.tables import Run
from benchmarks.load_installation import SPEC, analyze, fresh_database, percentile
from engine.spec import RunSpec

NUM_RUNS, NUM_CLAIMERS, NUM_PROCESSES = 10_000, 200, 4
PROJECTS, PEOPLE = 5, 8
_NUM_ALONE = 50
_GB = 10**9
_CPU = {"device": "cpu", "memory_total_bytes": 16 * _GB, "spec_version": 1, "event_version": 1}
_WORKERS = (
    WorkerCapabilities(**_CPU),
    WorkerCapabilities(**_CPU | {"memory_total_bytes": 64 * _GB, "labels": ["large"]}),
    WorkerCapabilities(**_CPU | {"device": "cuda", "num_gpus": 1, "gpu_memory_total_bytes": 80 * _GB, "labels": ["h100", "large"]}),
)  # fmt: skip
"""The kinds of workers, in turn."""
_PLAIN = RunNeeds.stated(RunSpec.model_validate(SPEC)).model_copy(
    update={"cpu_memory_bytes": _GB, "gpu_memory_bytes": _GB}
)
_NEEDS = (
    _PLAIN, _PLAIN, _PLAIN, _PLAIN.model_copy(update={"cpu_memory_bytes": 40 * _GB}), _PLAIN.model_copy(update={"labels": ["large"]}),
    _PLAIN.model_copy(update={"device": "cuda"}),
)  # fmt: skip
"""What runs need, in turn."""
_DONE = Ending("succeeded", "Finished.")


def main() -> None:
    """Claim all runs, check that each was claimed once, print how fast and how fairly."""
    num_runs = int(sys.argv[1]) if len(sys.argv) > 1 else NUM_RUNS
    num_claimers = int(sys.argv[2]) if len(sys.argv) > 2 else NUM_CLAIMERS
    with fresh_database("postgresql", max_connections=num_claimers + 20) as (_, url):
        database = Database(url)
        _queue(database, num_runs)
        analyze(url)
        alone = _claim_alone(database, _NUM_ALONE)
        database.engine.dispose()  # before the fork: no connection is shared
        latencies, seconds = _claim_together(url, num_claimers)
        result = {
            "runs": num_runs,
            "claimers": num_claimers,
            "owners": PROJECTS * PEOPLE,
            "claims_per_second": round(len(latencies) / seconds, 1),
            "alone_milliseconds": round(1000 * percentile(alone, 50), 1),
            "p50_milliseconds": round(1000 * percentile(latencies, 50), 1),
            "p95_milliseconds": round(1000 * percentile(latencies, 95), 1),
            "deviation_percent": round(100 * _largest_deviation(database), 2),
            "twice": _check(database, num_runs),
        }
        database.close()
    print(json.dumps(result))


def _queue(database: Database, num_runs: int) -> None:
    """Equally many runs of each person, all of one before all of the next: who asks for the oldest serves one for long."""
    spec, each = RunSpec.model_validate(SPEC), num_runs // (PROJECTS * PEOPLE)
    for number in range(PROJECTS * PEOPLE):
        owner = Principal(id=f"person {number % PEOPLE}", role="operator", project_id=f"project-{number // PEOPLE}")
        planned = [
            PlannedRun(variant="", note="", spec=spec, needs=_NEEDS[(number + one) % len(_NEEDS)])
            for one in range(each)
        ]
        with database.write() as session:
            create_experiment(session, f"question {number}", "", planned, owner=owner)


def _kind(number: int) -> WorkerCapabilities:
    return _WORKERS[number % len(_WORKERS)]


def _claim(database: Database, number: int) -> Claim | None:
    with database.write() as session:
        return claim_run(session, owner=f"fleet:0:{number}:0", host="fleet", boot_id="", worker=_kind(number))


def _end(database: Database, claim: Claim) -> None:
    with database.write() as session:
        end_attempt(session, claim, _DONE)


def _claim_alone(database: Database, num_claims: int) -> list[float]:
    """Seconds of each claim while nobody else asks."""
    latencies = []
    for _ in range(num_claims):
        began = time.perf_counter()
        claim = _claim(database, 2)  # of the kind that takes every run
        latencies.append(time.perf_counter() - began)
        assert claim is not None
        _end(database, claim)
    return latencies


def _claim_together(url: str, num_claimers: int) -> tuple[list[float], float]:
    """Seconds of each claim that found a run, and the time that all of them took."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(num_claimers + 1)
    pipes, processes = [], []
    for index in range(NUM_PROCESSES):
        receiving, sending = context.Pipe(duplex=False)
        numbers = range(index, num_claimers, NUM_PROCESSES)
        processes.append(context.Process(target=_process, args=(url, numbers, barrier, sending)))
        pipes.append(receiving)
        processes[-1].start()
    barrier.wait()
    began = time.monotonic()
    latencies = [one for pipe in pipes for one in pipe.recv()]
    seconds = time.monotonic() - began
    for process in processes:
        process.join()
    return latencies, seconds


def _process(url: str, numbers: range, barrier: multiprocessing.synchronize.Barrier, pipe: Connection) -> None:
    latencies: list[float] = []
    threads = [threading.Thread(target=_work, args=(url, number, barrier, latencies)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipe.send(latencies)


def _work(url: str, number: int, barrier: multiprocessing.synchronize.Barrier, latencies: list[float]) -> None:
    database = Database(url)
    with (
        database.write() as session
    ):  # connected, with its statements compiled, as a worker that has been there for a while
        assert claim_run(session, owner="warm", host="fleet", boot_id="", worker=_kind(number)) is not None
        session.rollback()
    held: Claim | None = None
    barrier.wait()
    while True:
        began = time.perf_counter()
        claim = _claim(database, number)
        if claim is None:
            break
        latencies.append(time.perf_counter() - began)
        if held is not None:
            _end(database, held)
        held = claim
    if held is not None:
        _end(database, held)
    database.close()


def _largest_deviation(database: Database) -> float:
    """Of anybody's share of the claims from the equal one, as a part of it, as long as everybody had runs that wait."""
    query = (
        select(Run.project_id, Run.created_by)
        .join(Attempt, Attempt.run_id == Run.id)
        .order_by(Attempt.started_at)
        .offset(_NUM_ALONE)
    )
    with database.read() as session:
        claims = [tuple(row) for row in session.execute(query)]
    left, served = Counter(claims), Counter[tuple[str, str]]()
    for owner in claims:
        served[owner] += 1
        if served[owner] == left[owner]:
            break
    mean = sum(served.values()) / (PROJECTS * PEOPLE)
    return max(abs(served[owner] - mean) for owner in left) / mean


def _check(database: Database, num_runs: int) -> int:
    """Runs that were claimed more than once; all of them have to be claimed and ended."""
    with database.read() as session:
        ended = session.scalar(select(func.count()).select_from(Run).where(Run.state == "succeeded"))
        assert ended == num_runs, f"{ended} of {num_runs} runs ended"
        several = select(Attempt.run_id).group_by(Attempt.run_id).having(func.count() > 1)
        return len(session.execute(several).all())


if __name__ == "__main__":
    main()
