"""What the dashboard costs its readers and its server, as JSON: `python -m benchmarks.dashboard_budgets`.

A whole stack with 500 ended runs and one at work, seen by Debian's Chromium: time until Home and Runs are drawn, until a rollout of
512 tokens can be read, requests to the API of one viewer of the run at work, and the growth of the servers' memory over 100
page views and 20 downloads. Each page is opened in a new browser context, with nothing cached; the rollout also by its link on
the run's page.
"""

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import select, update

from backend import migrate
from backend.database import Database
from backend.queries.wishes import ask_to_cancel
from backend.records import Rollout
from benchmarks.load_installation import queue_runs
from engine.token_trace import TokenTrace, read_trace, write_traces
from incipit.stack import LocalStack
from incipit.stack.local_token import local_token
from incipit.stack.state import read_state
from tests.chromium import chromium
from tests.worker.runs import short_spec

NUM_RUNS, NUM_TOKENS, NUM_VIEWS, NUM_DOWNLOADS = 500, 512, 100, 20
_REPEATS = 7
_VIEWER_SECONDS = 30.0
_PATHS = (
    "/",
    "/runs",
    "/run?id={0}",
    "/inspect?run={0}&step=0",
    "/compare?runs={0}",
    "/checkpoints?run={0}",
    "/system",
)


def main() -> None:
    """Fill a stack, look at it, print the figures."""
    for name in [name for name in os.environ if name.startswith("INCIPIT_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="incipit-dashboard-") as folder:
        home = Path(folder) / "home"
        home.mkdir(mode=0o700)
        os.environ["INCIPIT_HOME"] = str(home)
        _fill(home)
        with LocalStack(home) as stack, chromium() as browser:
            expect.set_options(timeout=60_000)
            headers = {"Authorization": f"Bearer {local_token(home)}"}
            with httpx.Client(base_url=stack.api_url, headers=headers, timeout=60, trust_env=False) as api:
                print(json.dumps(_measured(browser, str(stack.dashboard_url), api, home)))


def _fill(home: Path) -> None:
    """Runs that have ended, so that no worker takes them."""
    url = f"sqlite:///{home}/incipit.sqlite3"
    migrate.upgrade(url)
    database = Database(url)
    for run_id in queue_runs(database, NUM_RUNS):
        with database.write() as session:
            ask_to_cancel(session, run_id, checkpoint=False)
    database.close()


def _measured(browser: Browser, url: str, api: httpx.Client, home: Path) -> dict[str, Any]:
    finished = _submitted(api, num_steps=12)
    _await(api, finished, "succeeded", 12)
    _lengthen(home, finished)
    seen = {
        "home": _times(browser, url, "Last finished"),
        "runs": _times(browser, f"{url}/runs", re.compile(rf"of {NUM_RUNS + 1} runs")),
        "inspect": _times(
            browser, f"{url}/inspect?run={finished}&step=0", re.compile(rf"\b{NUM_TOKENS} tokens"), ".token"
        ),
        "inspect_by_link": _times_by_link(browser, f"{url}/run?id={finished}"),
    }
    # Some ten steps a second: it evaluates and saves each 20 s, so most looks find new figures of steps and nothing else.
    at_work = _submitted(api, num_steps=20_000, checkpoints={"every_steps": 200}, evaluation=_every(200))
    _await(api, at_work, "running", 20)
    requests = _requests_of_a_viewer(browser, f"{url}/run?id={at_work}", api)
    api.post(f"/api/v1/runs/{at_work}/cancel", json={"checkpoint": False}).raise_for_status()
    return {
        "runs": NUM_RUNS,
        "tokens": NUM_TOKENS,
        "paint_milliseconds": seen,
        "requests_per_2_seconds": requests,
        "growth_megabytes": _growth(browser, url, api, home, finished),
    }


def _every(steps: int) -> dict[str, Any]:
    return short_spec().evaluation.model_dump(mode="json") | {"every_steps": steps}


def _submitted(api: httpx.Client, **changes: object) -> str:
    base = json.loads(short_spec(**changes).model_dump_json())
    made = api.post("/api/v1/experiments", json={"name": "seen", "base": base}).raise_for_status().json()
    return str(api.get(f"/api/v1/experiments/{made['id']}/runs").raise_for_status().json()[0]["id"])


def _await(api: httpx.Client, run_id: str, state: str, step: int) -> None:
    deadline = time.monotonic() + 300
    while (run := api.get(f"/api/v1/runs/{run_id}").json())["state"] != state or run["step"] < step:
        assert time.monotonic() < deadline, f"the run {run['state']} at step {run['step']}"
        time.sleep(0.2)


def _lengthen(home: Path, run_id: str) -> None:
    """Make each traced rollout of a run as long as a rollout of NUM_TOKENS, its own tokens again and again."""
    database = Database(f"sqlite:///{home}/incipit.sqlite3")
    with database.write() as session:
        rollouts = session.scalars(select(Rollout).where(Rollout.run_id == run_id)).all()
        for place in {(one.fence, one.path) for one in rollouts}:
            path = home / "runs" / run_id / "attempts" / str(place[0]) / place[1]
            rows = sorted(one.row for one in rollouts if (one.fence, one.path) == place)
            traces = [_repeated(read_trace(path, row)) for row in rows]
            path.unlink()
            write_traces(path, traces)
        session.execute(update(Rollout).where(Rollout.run_id == run_id).values(num_tokens=NUM_TOKENS))
    database.close()


def _repeated(trace: TokenTrace) -> TokenTrace:
    length = len(trace.texts)
    once = ("prompt_texts", "vocabulary_ids", "vocabulary_texts")
    return trace.model_copy(
        update={
            name: [values[i % length] for i in range(NUM_TOKENS)]
            for name in TokenTrace.model_fields
            if name not in once and (values := getattr(trace, name))
        }
    )


@contextmanager
def _page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    yield context.new_page()
    context.close()


def _times(browser: Browser, address: str, says: str | re.Pattern[str], also: str | None = None) -> dict[str, float]:
    """Milliseconds from the address until the page shows what it is for; the first is a cold server's."""
    seconds = []
    for _ in range(_REPEATS + 1):
        with _page(browser) as page:
            began = time.perf_counter()
            page.goto(address)
            page.get_by_text(says).first.wait_for(timeout=60_000)
            if also:
                page.locator(also).first.wait_for(timeout=60_000)
            seconds.append(time.perf_counter() - began)
    return {"first": round(1000 * seconds[0]), "median": round(1000 * median(seconds[1:]))}


def _times_by_link(browser: Browser, address: str) -> dict[str, float]:
    """Milliseconds from the link on a run's page to the tokens; the first is of a browser that has seen no tokens yet."""
    seconds = []
    with _page(browser) as page:
        for _ in range(_REPEATS + 1):
            page.goto(address)
            link = page.get_by_role("link", name="Inspect tokens").first
            link.wait_for(timeout=60_000)
            expect(page.locator("[data-test-script-state='running']")).to_have_count(0)
            page.wait_for_timeout(1000)
            began = time.perf_counter()
            link.click()
            page.locator(".token").first.wait_for(timeout=60_000)
            seconds.append(time.perf_counter() - began)
    return {"first": round(1000 * seconds[0]), "median": round(1000 * median(seconds[1:]))}


def _num_requests(api: httpx.Client) -> float:
    """What the API has answered but for probes and this reading of it."""
    lines = api.get("/metrics").raise_for_status().text.splitlines()
    counted = [line for line in lines if line.startswith("incipit_http_requests_total{") and "/api/v1" in line]
    return sum(float(line.rpartition(" ")[2]) for line in counted)


def _requests_of_a_viewer(browser: Browser, address: str, api: httpx.Client) -> float:
    with _page(browser) as page:
        page.goto(address)
        expect(page.get_by_text("running").first).to_be_visible()
        page.wait_for_timeout(5000)
        before = _num_requests(api)
        page.wait_for_timeout(1000 * _VIEWER_SECONDS)
        return round((_num_requests(api) - before) / _VIEWER_SECONDS * 2, 2)


def _growth(browser: Browser, url: str, api: httpx.Client, home: Path, run_id: str) -> dict[str, float]:
    """Megabytes that dashboard and API hold more after the views and downloads than after one round of them."""
    (checkpoint,) = api.get("/api/v1/checkpoints", params={"run_id": run_id, "limit": 1}).json()[:1]
    for path in _PATHS:
        _look(browser, url + path.format(run_id))
    before = _resident(home)
    for number in range(NUM_VIEWS):
        _look(browser, url + _PATHS[number % len(_PATHS)].format(run_id))
    for _ in range(NUM_DOWNLOADS):
        link = (
            api.post(f"/api/v1/checkpoints/{checkpoint['id']}/link", json={}).raise_for_status().json()["archive_url"]
        )
        api.get(link).raise_for_status()
    after = _resident(home)
    return {name: round((after[name] - before[name]) / 1e6, 1) for name in before}


def _look(browser: Browser, address: str) -> None:
    with _page(browser) as page:
        page.goto(address)
        page.locator("h1").first.wait_for(timeout=60_000)
        expect(page.locator("[data-test-script-state='running']")).to_have_count(0)


def _resident(home: Path) -> dict[str, int]:
    state = read_state(home)
    assert state is not None
    return {
        one.name: psutil.Process(one.pid).memory_info().rss
        for one in state.services
        if one.name in ("dashboard", "api")
    }


if __name__ == "__main__":
    main()
