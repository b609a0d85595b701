"""`make bench` and `make load`: run benchmarks and add dated rows, with the commit, to the tables of docs/performance.md.

    python -m benchmarks [--print] [load|dashboard|peer|vllm]     (--print shows the rows and writes nothing)

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

_ROOT = Path(__file__).resolve().parent.parent
_PAGE = _ROOT / "docs" / "performance.md"

Row = list[str]


def step_rate_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            str(one["horizon"]),
            f"{one['ours_step_seconds'] * 1e3:.1f}",
            f"{one['generate_step_seconds'] * 1e3:.1f}",
            f"{one['step_ratio']:.2f}",
            f"{one['sampling_ratio']:.2f}",
        ]
        for one in result["results"]
    ]


def run_list_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            result["database"],
            f"{result['list_milliseconds_median']:.0f}",
            f"{result['list_cpu_milliseconds']:.0f}",
            f"{result['create_milliseconds']:.0f}",
        ]
    ]


def memory_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [str(one["tokens"]), f"{one['fused_bytes'] / 1e6:.0f}", f"{one['naive_bytes'] / 1e6:.0f}"]
        for one in result["results"]
    ]


def estimate_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            one["case"],
            f"{one['estimate_bytes'] / 1e6:.0f}",
            f"{one['peak_bytes'] / 1e6:.0f}",
            f"{one['estimate_bytes'] / one['peak_bytes']:.2f}",
            f"{one['process_bytes'] / 1e6:.0f}",
        ]
        for one in result["results"]
    ]


def recorded_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            one["database"],
            str(one["batch"]),
            str(one["steps"]),
            f"{one['points_per_second']:,}",
            f"{one['p50_milliseconds']:.0f}",
            f"{one['p95_milliseconds']:.0f}",
            f"{one['cpu_milliseconds']:.1f}",
        ]
        for one in result["results"]
    ]


def api_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            one["database"],
            name.replace("_", " "),
            f"{times['p50_milliseconds']:.0f}",
            f"{times['p95_milliseconds']:.0f}",
        ]
        for one in result["results"]
        for name, times in one.items()
        if name != "database"
    ]


def rollout_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            one["database"],
            *(f"{one[f'{name}_milliseconds']:.0f}" for name in ("first", "p50", "p95", "cpu")),
            f"{one['bytes'] / 1e3:.0f}",
        ]
        for one in result["results"]
    ]


def fleet_rows(result: dict[str, Any]) -> list[Row]:
    times = (result[f"{name}_milliseconds"] for name in ("alone", "p50", "p95"))
    return [
        [
            *(f"{result[name]:,}" for name in ("runs", "claimers", "owners")),
            f"{result['claims_per_second']:.0f}",
            *(f"{one:.0f}" for one in times),
            f"{result['deviation_percent']:.1f}",
            str(result["twice"]),
        ]
    ]


def start_rows(result: dict[str, Any]) -> list[Row]:
    held = [" / ".join(f"{size:.0f}" for size in result[name].values()) for name in ("supervisor", "control", "server")]
    return [
        [one["pair"], *(f"{one[f'{name}_seconds']:.1f}" for name in ("ready", "cpu", "loading")), *held]
        for one in result["results"]
    ]


def dashboard_rows(result: dict[str, Any]) -> list[Row]:
    paint, growth = result["paint_milliseconds"], result["growth_megabytes"]
    return [
        [
            *(
                f"{paint[page]['median']} ({paint[page]['first']})"
                for page in ("home", "runs", "inspect", "inspect_by_link")
            ),
            f"{result['requests_per_2_seconds']:.1f}",
            f"{growth['dashboard']:.0f}",
            f"{growth['api']:.0f}",
        ]
    ]


def decode_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            one["dtype"],
            str(one["batch"]),
            str(one["tokens"]),
            f"{one['incipit_tokens_per_second']:.0f}",
            f"{one['generate_tokens_per_second']:.0f}",
            *(f"{one[f'{name}_ratio']:.2f}" for name in ("decode", "cpu", "wall")),
        ]
        for one in result["results"]
    ]


def vllm_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            str(one["batch"]),
            str(one["tokens"]),
            f"{one['incipit_tokens_per_second']:.0f}",
            f"{one['vllm_tokens_per_second']:.0f}",
            *(f"{one[f'{name}_ratio']:.2f}" for name in ("decode_wall", "decode_cpu", "wall", "cpu")),
        ]
        for one in result["results"]
    ]


def sync_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [
            str(one["batch"]),
            str(one["tokens"]),
            *(f"{one[name]:.2f}" for name in ("engine", "whole", "sync")),
            f"{one['gap']:.3f}",
        ]
        for one in result["results"]
    ]


def overlap_rows(result: dict[str, Any]) -> list[Row]:
    return [
        [str(one["steps"]), *(f"{one[name]:.2f}" for name in ("plain", "overlapped", "ratio"))]
        for one in result["results"]
    ]


def profile_rows(result: dict[str, Any]) -> list[Row]:
    """A cell for each phase: CPU seconds and the share of its roofline."""
    return [
        [
            one["pair"],
            one["dtype"],
            str(one["batch"]),
            str(one["tokens"]),
            f"{one['matrix_rate'] / 1e9:.0f}",
            f"{one['copy_bandwidth'] / 1e9:.0f}",
            *(f"{phase['seconds']:.2f} ({phase['reached']:.0%})" for phase in one["phases"].values()),
        ]
        for one in result["results"]
    ]


# Heading of the table in the page, the command, and how its JSON becomes rows.
_BENCHMARKS: dict[str, tuple[list[str], Callable[[dict[str, Any]], list[Row]]]] = {
    "Training step": (["-m", "benchmarks.step_rate", "--json"], step_rate_rows),
    "Divergence memory": (["-m", "benchmarks.divergence_memory", "--json"], memory_rows),
    "Memory estimate": (["-m", "benchmarks.memory_estimate", "--json"], estimate_rows),
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
_SUITES = {"vllm": _VLLM, "peer": _PEER, "speed": _BENCHMARKS, "load": _LOAD, "dashboard": _DASHBOARD}


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
