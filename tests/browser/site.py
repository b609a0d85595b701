"""A running stack that browser tests look at."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.worker.runs import short_spec

_PATIENCE_SECONDS = 240.0


@dataclass(frozen=True)
class Site:
    """A running stack as a person and as a program see it."""

    home: Path
    dashboard_url: str
    api: httpx.Client

    def submit(self, experiment: str, *, note: str = "", **changes: object) -> str:
        """Queue an experiment of one run; the run's id."""
        base = json.loads(short_spec(**changes).model_dump_json())
        made = (
            self.api.post(
                "/experiments", json={"name": experiment, "base": base, "variants": [{"name": "only", "note": note}]}
            )
            .raise_for_status()
            .json()
        )
        (run,) = self.api.get(f"/experiments/{made['id']}/runs").raise_for_status().json()
        return str(run["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get(f"/runs/{run_id}").raise_for_status().json()
        return found

    def await_api(self) -> None:
        """Return when the API answers."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                self.api.get("/me").raise_for_status()
                return
            except httpx.TransportError:
                assert time.monotonic() < deadline, "the API did not come back"
                time.sleep(0.2)

    def await_run(self, run_id: str, state: str, step: int = 0) -> None:
        """Return when the run is in this state with so many steps recorded."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (run := self.run(run_id))["state"] != state or run["step"] < step:
            assert time.monotonic() < deadline, f"{run['state']} at step {run['step']}, not {state} at {step}"
            assert run["state"] == state or run["state"] not in ("failed", "cancelled"), run["failure_message"]
            time.sleep(0.2)
