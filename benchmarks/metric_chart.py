"""Time of a chart of a metric with a million points through the whole API: `python -m benchmarks.metric_chart [DATABASE_URL]`.

Without an address it takes a SQLite file in a temporary folder; with one, an empty PostgreSQL database. The run has three
metrics of a million steps, whose rows are written in bulk; what charts read beside them is copied by the recorder's own query.
"""

import json
import math
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median, quantiles

from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import insert

from backend import migrate
from backend.app import create_app
from backend.database import Database
from backend.queries.metrics import STRIDE, add_highlights
from backend.records import Metric
from backend.settings import Settings
from benchmarks.run_list import SPEC

NUM_STEPS = 1_000_000
KEYS = ("grad_norm", "learning_rate", "loss")
SPIKE_STEP = 777_777
REPEATS = 40


def main() -> None:
    """Write the points, read the chart repeatedly, print the times."""
    with tempfile.TemporaryDirectory() as folder:
        url = sys.argv[1] if len(sys.argv) > 1 else ""
        settings = Settings(
            home=Path(folder), database_url=url, broker_url="redis://127.0.0.1:1/0", local_token=SecretStr("x")
        )
        migrate.upgrade(settings.sql_url)
        headers = {"Authorization": "Bearer x"}
        with TestClient(create_app(settings), base_url="http://127.0.0.1", headers=headers) as client:
            assert client.post("/api/v1/experiments", json={"name": "q", "base": SPEC}).status_code == 201
            (run,) = client.get("/api/v1/runs").json()["items"]
            copied = _write(settings, run["id"])
            address = f"/api/v1/runs/{run['id']}/metrics"
            result = {
                "points": NUM_STEPS,
                "metrics_of_the_run": len(KEYS),
                "database": client.get("/readyz").json()["database"],
                "copy_milliseconds_of_1024_steps": round(1000 * copied, 1),
                "one_metric": _times(client, address, {"keys": "loss"}),
                "all_metrics": _times(client, address, {}),
                "last_1000_steps": _times(client, address, {"keys": "loss", "after_step": str(NUM_STEPS - 1000)}),
            }
    print(json.dumps(result))


def _write(settings: Settings, run_id: str) -> float:
    """Write the rows; the median seconds of copying what charts read of one stride."""
    seconds = []
    with closing(Database(settings.sql_url)) as database:
        for begin in range(0, NUM_STEPS, STRIDE):
            end = min(begin + STRIDE, NUM_STEPS + 1)
            with database.write() as session:
                rows = [
                    {"run_id": run_id, "key": key, "step": step, "value": _value(step), "fence": 1}
                    for key in KEYS
                    for step in range(max(begin, 1), end)
                ]
                session.execute(insert(Metric), rows)
                if end % STRIDE == 0:
                    began = time.perf_counter()
                    add_highlights(session, run_id, end)
                    seconds.append(time.perf_counter() - began)
    return median(seconds)


def _value(step: int) -> float:
    return 1e6 if step == SPIKE_STEP else math.sin(step / 1000) + 100 / step


def _times(client: TestClient, address: str, query: dict[str, str]) -> dict[str, float]:
    """Milliseconds of the first call, and of the others."""
    seconds = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        response = client.get(address, params=query)
        seconds.append(time.perf_counter() - began)
    shown = response.json()[-1]
    assert len(shown["steps"]) <= 2000
    assert shown["steps"][-1] == NUM_STEPS
    assert "after_step" in query or max(shown["values"]) == 1e6, "the spike is shown"
    return {
        "first_milliseconds": round(1000 * seconds[0], 1),
        "median_milliseconds": round(1000 * median(seconds[1:]), 1),
        "p95_milliseconds": round(1000 * quantiles(seconds[1:], n=20)[-1], 1),
        "bytes": len(response.content),
    }


if __name__ == "__main__":
    main()
