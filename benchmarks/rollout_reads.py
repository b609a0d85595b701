"""Times of opening a rollout at a real API process, as JSON: `python -m benchmarks.rollout_reads`.

On each database, a run of 2,000 traced steps with 8 rollouts; those that are asked for have 512 tokens with the top 16 of both
models, which differ as far as they can: 33 candidates at each position. Percentiles of wall-clock times, as a client sees them.
"""

import json
import random
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import insert, select

from backend.database import Database
from backend.records import Rollout
from benchmarks.load_installation import DATABASES, TOKEN, analyze, api, fresh_database, percentile, queue_runs
from engine.token_trace import TokenTrace, write_traces

NUM_STEPS, NUM_ROLLOUTS, NUM_TOKENS, TOP_K = 2000, 8, 512, 16
_REPEATS = 40
_VOCABULARY = 50_000


def main() -> None:
    """Write the rollouts, open those of the last step in turn, print the times."""
    results = []
    for kind in DATABASES:
        with fresh_database(kind) as (folder, url):
            with closing(Database(url, checkpoints_wal=True)) as database:
                ids = _fill(database, folder)
            analyze(url)
            with api(folder, url) as address:
                results.append({"database": kind, **_times(address, ids)})
    print(json.dumps({"tokens": NUM_TOKENS, "top_k": TOP_K, "results": results}))


def _fill(database: Database, home: Path) -> list[str]:
    """The rows of all rollouts and the file of the last step's; the ids of these."""
    (run_id,) = queue_runs(database, 1)
    values = random.Random(0)
    path = home / "runs" / run_id / "attempts" / "1" / "traces.parquet"
    path.parent.mkdir(parents=True)
    write_traces(path, [_trace(values) for _ in range(NUM_ROLLOUTS)])
    for step in range(NUM_STEPS):
        rows = [_row(run_id, step, row, path.name, values.random()) for row in range(NUM_ROLLOUTS)]
        with database.write() as session:
            session.execute(insert(Rollout), rows)
    last = select(Rollout.id).where(Rollout.run_id == run_id, Rollout.step == NUM_STEPS - 1)
    with database.read() as session:
        return list(session.scalars(last))


def _row(run_id: str, step: int, row: int, path: str, value: float) -> dict[str, Any]:
    return {
        "run_id": run_id, "fence": 1, "step": step, "subject": "student", "horizon": 64, "path": path, "row": row,
        "prompt_index": row, "prompt": "word " * 60, "completion": "word " * NUM_TOKENS, "num_prompt_tokens": 60,
        "num_tokens": NUM_TOKENS, "finish_reason": "eos", "mean_reverse_kl": value, "max_reverse_kl": 9 * value,
    }  # fmt: skip


def _trace(values: random.Random) -> TokenTrace:
    def floats(count: int) -> list[float]:
        return [-10 * values.random() for _ in range(count)]

    candidates = [values.sample(range(_VOCABULARY), 2 * TOP_K + 1) for _ in range(NUM_TOKENS)]
    vocabulary = sorted({token_id for position in candidates for token_id in position})
    measured = ("student_logprob", "teacher_logprob", "reverse_kl", "forward_kl", "jsd", "student_entropy")
    return TokenTrace(
        prompt_texts=[" word"] * 60,
        token_ids=[position[0] for position in candidates],
        texts=[" word"] * NUM_TOKENS,
        flags=[0] * NUM_TOKENS,
        **{name: floats(NUM_TOKENS) for name in (*measured, "teacher_entropy")},
        student_rank=[1] * NUM_TOKENS,
        teacher_rank=[2] * NUM_TOKENS,
        candidate_ids=candidates,
        candidate_student_logprob=[floats(len(position)) for position in candidates],
        candidate_teacher_logprob=[floats(len(position)) for position in candidates],
        vocabulary_ids=vocabulary,
        vocabulary_texts=[f" word{token_id}" for token_id in vocabulary],
    )


def _times(address: str, ids: list[str]) -> dict[str, float]:
    headers, seconds = {"Authorization": f"Bearer {TOKEN}"}, []
    with httpx.Client(base_url=f"{address}/api/v1", headers=headers, timeout=60, trust_env=False) as client:
        cpu_before = _cpu_seconds()
        for number in range(_REPEATS + 1):
            began = time.perf_counter()
            response = client.get(f"/rollouts/{ids[number % len(ids)]}").raise_for_status()
            seconds.append(time.perf_counter() - began)
        cpu_seconds = (_cpu_seconds() - cpu_before) / len(seconds)
    return {
        "first_milliseconds": round(1000 * seconds[0], 1),
        "p50_milliseconds": round(1000 * percentile(seconds[1:], 50), 1),
        "p95_milliseconds": round(1000 * percentile(seconds[1:], 95), 1),
        "cpu_milliseconds": round(1000 * cpu_seconds, 1),
        "bytes": len(response.content),
    }


def _cpu_seconds() -> float:
    """Of the API process so far."""
    (process,) = (child for child in psutil.Process().children() if child.cmdline()[-1] == "backend")
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
