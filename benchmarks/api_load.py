"""Times of the API under load, as JSON: `python -m benchmarks.api_load`.

On each database, through a real API process with one client beside it: the list of 10,000 runs; other routes while 200
event streams are open; a chart of a run with 5,000,000 metric rows. Percentiles of wall-clock times, as a client sees them.
"""

import asyncio
import json
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text

from backend.database import Database
from backend.queries.metrics import STRIDE, add_highlights
from benchmarks.load_installation import DATABASES, TOKEN, analyze, api, fresh_database, percentile, queue_runs

NUM_RUNS = 10_000
NUM_STREAMS = 200
NUM_METRICS, NUM_STEPS = 20, 250_000
_LONGEST_PAGE = 200
_REPEATS = 40
_CHARTS = 5
_HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def main() -> None:
    """Fill and measure both databases, print the times."""
    results = []
    for kind in DATABASES:
        with fresh_database(kind) as (folder, url):
            results.append({"database": kind, **_measured(folder, url)})
    print(json.dumps({"runs": NUM_RUNS, "streams": NUM_STREAMS, "rows": NUM_METRICS * NUM_STEPS, "results": results}))


def _measured(folder: Path, url: str) -> dict[str, Any]:
    database = Database(url, checkpoints_wal=True)
    run_ids = queue_runs(database, NUM_RUNS)
    analyze(url)
    with api(folder, url) as address:
        with httpx.Client(base_url=f"{address}/api/v1", headers=_HEADERS, timeout=60, trust_env=False) as client:
            lists = _list_times(client)
        quiet, busy = asyncio.run(_times_beside_streams(f"{address}/api/v1", run_ids))
        _fill(database, run_ids[0])
        database.close()
        analyze(url)
        with httpx.Client(base_url=f"{address}/api/v1", headers=_HEADERS, timeout=60, trust_env=False) as client:
            one = [_seconds(client, f"/runs/{run_ids[0]}/metrics", keys="metric_07") for _ in range(_CHARTS)]
    return {
        **{f"list_{name}": _shown(seconds) for name, seconds in lists.items()},
        "without_streams": _shown(quiet),
        "beside_streams": _shown(busy),
        "chart": _shown(one),
    }


def _list_times(client: httpx.Client) -> dict[str, list[float]]:
    """Seconds of a page of 100 runs: the newest, those of a state, those with a name, and a page in the middle."""
    middle: dict[str, str] = {}
    for _ in range(NUM_RUNS // 2 // _LONGEST_PAGE):
        page = client.get("/runs", params={"limit": _LONGEST_PAGE, **middle}).raise_for_status().json()
        middle = {"cursor": page["next_cursor"]}
    asked: dict[str, dict[str, Any]] = {
        "newest": {},
        "state": {"state": "queued"},
        "search": {"search": "question 7"},
        "middle": middle,
    }
    times: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(_REPEATS):
        for name, parameters in asked.items():
            times[name].append(_seconds(client, "/runs", **parameters))
    return times


def _seconds(client: httpx.Client, path: str, **parameters: Any) -> float:
    began = time.perf_counter()
    client.get(path, params=parameters).raise_for_status()
    return time.perf_counter() - began


async def _times_beside_streams(address: str, run_ids: list[str]) -> tuple[list[float], list[float]]:
    """Seconds of other routes, before and while the streams are open and have sent their first event."""
    limits = httpx.Limits(max_connections=None)
    options: dict[str, Any] = {"base_url": address, "headers": _HEADERS, "timeout": 60, "trust_env": False}
    async with httpx.AsyncClient(**options) as client, httpx.AsyncClient(**options, limits=limits) as streaming:
        quiet = await _route_times(client, run_ids)
        async with AsyncExitStack() as streams:
            readers = []
            for run_id in run_ids[:NUM_STREAMS]:
                response = await streams.enter_async_context(streaming.stream("GET", f"/runs/{run_id}/stream"))
                response.raise_for_status()
                readers.append(asyncio.create_task(_read(response)))
            await asyncio.sleep(2)
            busy = await _route_times(client, run_ids)
            assert not [one for one in readers if one.done()], "a stream has ended"
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
    return quiet, busy


async def _read(response: httpx.Response) -> None:
    async for _ in response.aiter_raw():
        pass


async def _route_times(client: httpx.AsyncClient, run_ids: list[str]) -> list[float]:
    times = []
    for number in range(_REPEATS):
        run_id = run_ids[-1 - number]
        for path in ("/runs?limit=20", f"/runs/{run_id}", f"/runs/{run_id}/events", "/me"):
            began = time.perf_counter()
            (await client.get(path)).raise_for_status()
            times.append(time.perf_counter() - began)
    return times


def _fill(database: Database, run_id: str) -> None:
    """Give a run as many metrics as a year of training would."""
    series = "SELECT i FROM generate_series(1, :n) AS s(i)"
    if database.is_sqlite:
        series = "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < :n) SELECT i FROM s"
    insert = (
        f"INSERT INTO metrics (run_id, key, step, value, fence) SELECT :run, :key, i, 1.0 / i, 1 FROM ({series}) AS t"
    )
    for number in range(NUM_METRICS):
        with database.write() as session:
            session.execute(text(insert), {"run": run_id, "key": f"metric_{number:02}", "n": NUM_STEPS})
    for end in range(STRIDE, NUM_STEPS, STRIDE):  # what the recorder does after each
        with database.write() as session:
            add_highlights(session, run_id, end)
    if database.is_sqlite:  # what the control process does
        with database.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))


def _shown(seconds: list[float]) -> dict[str, float]:
    return {f"p{percent}_milliseconds": round(1000 * percentile(seconds, percent), 1) for percent in (50, 95)}


if __name__ == "__main__":
    main()
