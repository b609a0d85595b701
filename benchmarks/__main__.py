"""`make bench` and `make load`: run benchmarks and add dated rows, with the commit, to the tables of docs/performance.md.

    python -m benchmarks [--print] [load|dashboard|peer|vllm|shapes|gpu]     (--print shows the rows and writes nothing)

The tables are made by this command alone. Each row names the machine's load at its start, since a busy machine is slower.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peer_step import row as peer_row
from benchmarks.table_rows import (
    Row,
    api_rows,
    counted_shape_rows,
    dashboard_rows,
    decode_rows,
    estimate_rows,
    fleet_rows,
    measured_shape_rows,
    memory_rows,
    overlap_rows,
    prefix_memory_rows,
    profile_rows,
    recorded_rows,
    rollout_rows,
    run_list_rows,
    shape_memory_rows,
    start_rows,
    step_rate_rows,
    sync_rows,
    vllm_rows,
)

_ROOT = Path(__file__).resolve().parent.parent
_PAGE = _ROOT / "docs" / "performance.md"


# Heading of the table in the page, the command, and how its JSON becomes rows.
_BENCHMARKS: dict[str, tuple[list[str], Callable[[dict[str, Any]], list[Row]]]] = {
    "Training step": (["-m", "benchmarks.step_rate", "--json"], step_rate_rows),
    "Divergence memory": (["-m", "benchmarks.divergence_memory", "--json"], memory_rows),
    "Memory estimate": (["-m", "benchmarks.memory_estimate", "--json"], estimate_rows),
    "Memory by prefix": (["-m", "benchmarks.prefix_memory", "--json"], prefix_memory_rows),
    "Run list": (["benchmarks/run_list.py"], run_list_rows),
    "Start-up": (["-m", "benchmarks.start_up"], start_rows),
}

_LOAD: dict[str, tuple[list[str], Callable[[dict[str, Any]], list[Row]]]] = {
    "Recorded points": (["-m", "benchmarks.recorded_points"], recorded_rows),
    "API under load": (["-m", "benchmarks.api_load"], api_rows),
    "Rollouts": (["-m", "benchmarks.rollout_reads"], rollout_rows),
    "Many workers": (["-m", "benchmarks.fleet"], fleet_rows),
}

_DASHBOARD: dict[str, tuple[list[str], Callable[[dict[str, Any]], list[Row]]]] = {
    "Dashboard": (["-m", "benchmarks.dashboard_budgets"], dashboard_rows),
}
_PEER: dict[str, tuple[list[str], Callable[[dict[str, Any]], list[Row]]]] = {
    "Against TRL": (
        ["-m", "benchmarks.peer_step", "--json"],
        lambda result: [peer_row(one) for one in result["results"]],
    ),
    "Decoding": (["-m", "benchmarks.decode_rate", "--json"], decode_rows),
    "Phases": (["-m", "benchmarks.step_profile", "--json"], profile_rows),
    "Overlap": (["-m", "benchmarks.overlap_step", "--json"], overlap_rows),
}
# Needs options: python -m benchmarks vllm --only "Against vLLM" --vllm-python VENV/bin/python
_VLLM: dict[str, tuple[list[str], Callable[[dict[str, Any]], list[Row]]]] = {
    "Against vLLM": (["-m", "benchmarks.vllm_rate", "--json"], vllm_rows),
    "Rollouts on a server": (["-m", "benchmarks.rollout_sync", "--json"], sync_rows),
}
# By formula: nothing is trained.
_SHAPES: dict[str, tuple[list[str], Callable[[dict[str, Any]], list[Row]]]] = {
    "The paper's shapes, counted": (["-m", "benchmarks.paper_shapes", "--json"], counted_shape_rows),
    "Memory at published shapes": (["-m", "benchmarks.memory_at_shapes", "--json"], shape_memory_rows),
}
_GPU: dict[str, tuple[list[str], Callable[[dict[str, Any]], list[Row]]]] = {
    "The paper's shapes, measured": (["-m", "benchmarks.paper_shapes", "--measure", "--json"], measured_shape_rows),
}
_SUITES = {
    "shapes": _SHAPES,
    "gpu": _GPU,
    "vllm": _VLLM,
    "peer": _PEER,
    "speed": _BENCHMARKS,
    "load": _LOAD,
    "dashboard": _DASHBOARD,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", dest="only_print", help="show the rows, write nothing")
    parser.add_argument("suite", nargs="?", choices=list(_SUITES), default="speed")
    parser.add_argument("--only", help="the heading of one table of the suite; all further options go to its benchmark")
    arguments, options = parser.parse_known_args()
    if options and arguments.only is None:
        parser.error(f"{options[0]} belongs to one benchmark; name its table with --only.")
    if arguments.only not in (None, *_SUITES[arguments.suite]):
        parser.error(f"--only is {arguments.only!r}; choose one of {', '.join(_SUITES[arguments.suite])}.")
    page = _PAGE.read_text()
    for heading, (command, rows_of) in _SUITES[arguments.suite].items():
        if arguments.only not in (None, heading):
            continue
        load = os.getloadavg()[0]
        done = subprocess.run(
            [sys.executable, *command, *options], cwd=_ROOT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"{heading}: the benchmark failed\n{done.stderr[-2000:]}", file=sys.stderr)
            return 1
        stamp = [f"{datetime.now(UTC):%Y-%m-%d}", _commit(), f"{load:.1f}"]
        for row in rows_of(json.loads(done.stdout.strip().splitlines()[-1])):
            line = f"| {' | '.join([*stamp, *row])} |"
            print(f"{heading}: {line}")
            page = _with_row(page, heading, line)
        if not arguments.only_print:  # after each, so that an interrupted run keeps what it has measured
            _PAGE.write_text(page)
    return 0


def _with_row(page: str, heading: str, line: str) -> str:
    """The page with a row behind the last one of the table below a heading."""
    lines = page.splitlines()
    at = lines.index(f"## {heading}")
    last = max(i for i in range(at, len(lines)) if lines[i].startswith("|") and not _is_other_section(lines, at, i))
    return "\n".join([*lines[: last + 1], line, *lines[last + 1 :]]) + "\n"


def _is_other_section(lines: list[str], start: int, index: int) -> bool:
    return any(line.startswith("## ") for line in lines[start + 1 : index])


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    changed = (
        "+" if git("status", "--porcelain", "--untracked-files=no", "--", "engine", "backend", "benchmarks") else ""
    )
    return (git("rev-parse", "--short", "HEAD") or "?") + changed


if __name__ == "__main__":
    sys.exit(main())
