"""How soon an engine is ready and what an idle worker holds: `python -m benchmarks.start_up [REPEATS]`, as JSON.

A whole local stack without dashboard trains the tiny pair, and SmolLM2 where `incipit models fetch smollm2` has stored it.
Seconds from the claim in the database to the engine's `ready`: supervisor, imports, weights and the checks of both models.
The best of several, since others may use the machine; the first, for which the server of engines imports torch, is left out.
CPU seconds are the engine's own, without what that server spent once. Memory is that of the worker's processes:
resident (RSS), with shared pages divided among those that share them (PSS), and its own alone (USS). Linux only.
"""

import json
import os
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil

from engine.locations import incipit_home
from incipit.stack import LocalStack
from incipit.stack.local_token import local_token
from incipit.stack.state import read_state

_REPEATS = 3
_LONGEST_SECONDS = 300.0
_TINY = ("builtin:tiny/models/student-plan", "builtin:tiny/models/teacher", "builtin:tiny/data")
_SMOLLM2 = ("models/smollm2/student-26", "models/smollm2/teacher", "data/gsm-symbolic")


def main() -> None:
    """Start the stack and its runs, print the figures."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else _REPEATS
    fetched = incipit_home()
    for name in [name for name in os.environ if name.startswith("INCIPIT_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="incipit-start-") as folder:
        home = Path(folder) / "home"
        home.mkdir(mode=0o700)
        os.environ["INCIPIT_HOME"] = str(home)
        pairs = {"tiny": _TINY}
        if (fetched / _SMOLLM2[0]).is_dir():  # of another home, for this one begins empty
            student, teacher, data = (str((fetched / path).resolve()) for path in _SMOLLM2)
            pairs["SmolLM2"] = (student, teacher, data)
        with LocalStack(home, with_dashboard=False) as stack:
            headers = {"Authorization": f"Bearer {local_token(home)}"}
            with httpx.Client(base_url=f"{stack.api_url}/api/v1", headers=headers, trust_env=False, timeout=30) as api:
                found = [{"pair": name, **_best(api, pair, repeats)} for name, pair in pairs.items()]
            print(json.dumps({"results": found, **_memory(home)}))


def _best(api: httpx.Client, pair: tuple[str, str, str], repeats: int) -> dict[str, float]:
    """The least wall and CPU seconds of several starts behind the first."""
    starts = [_start(api, pair) for _ in range(repeats + 1)][1:]
    return {name: min(start[name] for start in starts) for name in starts[0]}


def _start(api: httpx.Client, pair: tuple[str, str, str]) -> dict[str, float]:
    run_id = _submitted(api, pair)
    ready = _event(api, run_id, "ready")
    engine = psutil.Process(_event(api, run_id, "started")["payload"]["pid"]).cpu_times()
    claimed = api.get(f"/runs/{run_id}").raise_for_status().json()["started_at"]
    api.post(f"/runs/{run_id}/cancel", json={"checkpoint": False}).raise_for_status()
    while api.get(f"/runs/{run_id}").raise_for_status().json()["state"] != "cancelled":
        time.sleep(0.2)
    wall = datetime.fromisoformat(ready["time"]) - datetime.fromisoformat(claimed)
    return {
        "ready_seconds": round(wall.total_seconds(), 2),
        "cpu_seconds": round(engine.user + engine.system, 2),
        "loading_seconds": round(ready["payload"]["seconds"], 2),
    }


def _submitted(api: httpx.Client, pair: tuple[str, str, str]) -> str:
    student, teacher, data = pair
    spec = {
        "name": "start",
        "student": {"path": student},
        "teacher": {"path": teacher},
        "prompts": {"path": f"{data}/train.jsonl"},
        "prefix": {"kind": "constant", "tokens": 8},
        "max_completion_tokens": 64,
        "num_steps": 10_000,
        "evaluation": {"path": f"{data}/dev.jsonl"},
    }
    made = api.post("/experiments", json={"name": "start", "base": spec}).raise_for_status().json()
    return str(api.get(f"/experiments/{made['id']}/runs").raise_for_status().json()[0]["id"])


def _event(api: httpx.Client, run_id: str, kind: str) -> dict[str, Any]:
    """The event of a kind, as soon as it is recorded."""
    deadline = time.monotonic() + _LONGEST_SECONDS
    while time.monotonic() < deadline:
        found = api.get(f"/runs/{run_id}/events", params={"kind": kind}).raise_for_status().json()["items"]
        if found:
            return dict(found[0])
        state = api.get(f"/runs/{run_id}").raise_for_status().json()
        assert state["state"] in ("queued", "starting", "running"), state
        time.sleep(0.1)
    raise TimeoutError(f"no {kind} of run {run_id} within {_LONGEST_SECONDS} s")


def _memory(home: Path) -> dict[str, Any]:
    """Megabytes of the largest supervisor that has worked, of the server of engines, of Celery's main process and of control."""
    state = read_state(home)
    assert state is not None
    pids = {service.name: service.pid for service in state.services}
    main = psutil.Process(pids["worker"])
    servers = [child for child in main.children() if "engine.fork_server" in child.cmdline()]
    supervisors = [_megabytes(child) for child in main.children() if child not in servers]
    return {
        "supervisor": max(supervisors, key=lambda one: one["rss"]),
        "server": _megabytes(servers[0]) if servers else {"rss": 0.0, "pss": 0.0, "uss": 0.0},
        "celery": _megabytes(main),
        "control": _megabytes(psutil.Process(pids["control"])),
    }


def _megabytes(process: psutil.Process) -> dict[str, float]:
    used = process.memory_full_info()
    return {name: round(getattr(used, name) / 1e6, 1) for name in ("rss", "pss", "uss")}


if __name__ == "__main__":
    main()
