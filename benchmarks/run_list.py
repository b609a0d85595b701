"""Time of listing 1,000 runs through the whole API, as JSON: `python benchmarks/run_list.py [DATABASE_URL]`.

Without an address it takes a SQLite file in a temporary folder; with one, an empty PostgreSQL database.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from fastapi.testclient import TestClient
from pydantic import SecretStr

from backend import migrate
from backend.app import create_app
from backend.limits import Limits
from backend.settings import Settings

NUM_RUNS = 1000
REPEATS = 20
SPEC = {
    "name": "base",
    "student": {"path": "builtin:tiny/models/student-plan"},
    "teacher": {"path": "builtin:tiny/models/teacher"},
    "prompts": {"path": "builtin:tiny/data/train.jsonl"},
    "prefix": {"kind": "constant", "tokens": 8},
    "evaluation": {"path": "builtin:tiny/data/dev.jsonl"},
}


def main() -> None:
    """Create the runs, list them repeatedly, print the times."""
    with tempfile.TemporaryDirectory() as folder:
        url = sys.argv[1] if len(sys.argv) > 1 else ""
        settings = Settings(
            home=Path(folder),
            database_url=url,
            broker_url="redis://127.0.0.1:1/0",
            local_token=SecretStr("x"),
            limits=Limits(page_items=NUM_RUNS),
        )
        migrate.upgrade(settings.sql_url)
        with TestClient(
            create_app(settings), base_url="http://127.0.0.1", headers={"Authorization": "Bearer x"}
        ) as client:
            variants = [{"name": f"arm {arm}", "changes": {"num_steps": 100 + arm}} for arm in range(100)]
            body = {"name": "benchmark", "base": SPEC, "variants": variants, "seeds": list(range(10))}
            began = time.perf_counter()
            assert client.post("/api/v1/experiments", json=body).status_code == 201
            created = time.perf_counter() - began
            seconds, cpu_began = [], time.process_time()
            for _ in range(REPEATS):
                began = time.perf_counter()
                response = client.get("/api/v1/runs", params={"limit": NUM_RUNS})
                seconds.append(time.perf_counter() - began)
                assert len(response.json()["items"]) == NUM_RUNS
            cpu_seconds = (time.process_time() - cpu_began) / REPEATS
            result = {
                "runs": NUM_RUNS,
                "database": client.get("/readyz").json()["database"],
                "list_milliseconds_median": round(1000 * statistics.median(seconds), 1),
                "list_milliseconds_worst": round(1000 * max(seconds), 1),
                "list_cpu_milliseconds": round(1000 * cpu_seconds, 1),
                "create_milliseconds": round(1000 * created, 1),
                "response_bytes": len(response.content),
            }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
