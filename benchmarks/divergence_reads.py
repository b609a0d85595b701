"""Time of what Inspect asks across rollouts, through the whole API: `python -m benchmarks.divergence_reads`.

On both databases, a run with 2,000 traced steps of 64 rollouts of 4,096 tokens: half a billion stored tokens, as the
recorder writes of them. All limits of what is stored are reached: 512 bins, 100 token types.
"""

import json
import time
from contextlib import closing
from statistics import median, quantiles

from fastapi.testclient import TestClient
from pydantic import SecretStr

from backend.app import create_app
from backend.database import Database
from backend.queries.step_profiles import write_profile
from backend.settings import Settings
from benchmarks.load_installation import DATABASES, TOKEN, fresh_database, queue_runs
from engine.events import TracesWritten
from engine.trace_profile import MAX_BINS, MAX_TOKEN_TYPES, BinValues, TokenType, TraceProfile

NUM_STEPS, NUM_ROLLOUTS, LENGTH = 2000, 64, 4096
REPEATS = 20
_ASKED = {
    "map": "divergence/grid",
    "positions": "divergence/positions",
    "token_types": "divergence/tokens",
    "prefix_aid": "prefix-aid",
}


def main() -> None:
    """Write the rows, ask each of the addresses repeatedly, print the times."""
    results = []
    for kind in DATABASES:
        with fresh_database(kind) as (folder, url):
            with closing(Database(url)) as database:
                (run_id,) = queue_runs(database, 1)
                write_milliseconds = _write(database, run_id)
            settings = Settings(
                home=folder, database_url=url, broker_url="redis://127.0.0.1:1/0", local_token=SecretStr(TOKEN)
            )
            headers = {"Authorization": f"Bearer {TOKEN}"}
            with TestClient(create_app(settings), base_url="http://127.0.0.1", headers=headers) as client:
                times = {name: _times(client, f"/api/v1/runs/{run_id}/{path}") for name, path in _ASKED.items()}
        results.append({"database": kind, "write_milliseconds_of_a_step": write_milliseconds, **times})
    print(json.dumps({"traced_steps": NUM_STEPS, "results": results}))


def _write(database: Database, run_id: str) -> float:
    """Write the rows; the median milliseconds of one."""
    seconds = []
    for step in range(NUM_STEPS):
        event = TracesWritten(time=1.0, step=step, horizon=64, path="t", top_k=8, rollouts=[])
        began = time.perf_counter()
        with database.write() as session:
            write_profile(session, run_id, 1, event, _profile(step))
        seconds.append(time.perf_counter() - began)
    return round(1000 * median(seconds), 1)


def _profile(step: int) -> TraceProfile:
    values = [float(f"{0.123456 + (step + at) % 97:.6g}") for at in range(MAX_BINS)]
    bins = BinValues(mean=values, p10=values, p50=values, p90=values)
    counts = [NUM_ROLLOUTS] * MAX_BINS
    kinds = [
        TokenType(token_id=(step * 31 + at) % 5000, text=f" word{at}", count=9, reverse_kl=values[at])
        for at in range(MAX_TOKEN_TYPES)
    ]
    metrics = ("reverse_kl", "forward_kl", "jsd", "student_entropy", "teacher_entropy", "overlap_mass")
    return TraceProfile(
        length=LENGTH, num_rollouts=NUM_ROLLOUTS, num_tokens=NUM_ROLLOUTS * LENGTH, reverse_kl=sum(values),
        rollouts=counts, tokens=[8 * count for count in counts], values=dict.fromkeys(metrics, bins), token_types=kinds,
    )  # fmt: skip


def _times(client: TestClient, address: str) -> dict[str, float]:
    seconds = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        response = client.get(address)
        seconds.append(time.perf_counter() - began)
        assert response.status_code == 200
    return {
        "first_milliseconds": round(1000 * seconds[0], 1),
        "median_milliseconds": round(1000 * median(seconds[1:]), 1),
        "p95_milliseconds": round(1000 * quantiles(seconds[1:], n=20)[-1], 1),
        "bytes": len(response.content),
    }


if __name__ == "__main__":
    main()
