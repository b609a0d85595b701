"""What an installation of a given size needs, from what one run takes and what was measured: writes the tables of docs/scaling.md.

    python -m benchmarks.scaling --home HOME [--print]

HOME is one whose runs have ended, such as that of `make demo`. Rates are the newest rows of docs/performance.md.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend.migrate import upgrade
from engine.events import StepDone, TracesWritten, read_events

_ROOT = Path(__file__).resolve().parents[1]
_SIZES = (10, 1_000, 100_000)  # runs a day
_DAY = 86_400
_CASES = {"as measured": 1, "1,000 times as long": 1_000}
"""How much more steps a run has than the one that was looked at."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--print", action="store_true", dest="only_print", help="show the tables, write nothing")
    arguments = parser.parse_args()
    one, rates = one_run(arguments.home), measured_rates((_ROOT / "docs" / "performance.md").read_text("utf-8"))
    tables = {
        "One run": _costs(one, rates),
        "A day": [line for name, factor in _CASES.items() for line in _days(name, factor, one, rates)],
    }
    page = _ROOT / "docs" / "scaling.md"
    text = page.read_text("utf-8")
    for heading, lines in tables.items():
        print("\n".join([f"## {heading}", *lines]))
        before, _, behind = text.partition(f"<!-- {heading} -->\n")
        _, end, rest = behind.partition("<!-- end -->\n")
        text = "\n".join([f"{before}<!-- {heading} -->", "", *lines, "", f"{end}{rest}"])
    if not arguments.only_print:
        page.write_text(text)


def one_run(home: Path) -> dict[str, float]:
    """Medians over the succeeded runs of a home: steps, points, seconds, and bytes of each kind."""
    database = sqlite3.connect(f"file:{home / 'incipit.sqlite3'}?mode=ro", uri=True)
    ended = [row[0] for row in database.execute("select id from runs where state = 'succeeded'")]
    runs = [_told(home / "runs" / _folder(home, run)) for run in ended]
    found = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    (points,) = database.execute("select count(*) from metrics").fetchone()
    (everything,) = database.execute("select count(*) from runs").fetchone()
    filled = (home / "incipit.sqlite3").stat().st_size - _empty_bytes()
    return found | {
        "points": points / everything,
        "database": filled / everything,
        "runs": len(runs),
    }


def _empty_bytes() -> int:
    """What a database takes before the first run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "incipit.sqlite3"
        upgrade(f"sqlite:///{path}")
        return path.stat().st_size


def _folder(home: Path, run: object) -> str:
    name = str(run)
    return (
        name if (home / "runs" / name).is_dir() else f"{name[:8]}-{name[8:12]}-{name[12:16]}-{name[16:20]}-{name[20:]}"
    )


def _told(folder: Path) -> dict[str, float]:
    events = [event for path in folder.glob("attempts/*/events.jsonl") for event, _ in read_events(path)]
    traces = sum(path.stat().st_size for path in folder.glob("attempts/*/traces/*"))
    num_traced = sum(len(event.rollouts) for event in events if isinstance(event, TracesWritten))
    steps = [event for event in events if isinstance(event, StepDone)]
    return {
        "steps": len(steps),
        "seconds": sum(event.seconds["total"] for event in steps),
        "events": sum(path.stat().st_size for path in folder.glob("attempts/*/events.jsonl")),
        "traces": traces,
        "rollout": traces / num_traced if num_traced else 0.0,
        "checkpoints": sum(
            path.stat().st_size for path in folder.glob("attempts/*/checkpoints/**/*") if path.is_file()
        ),
    }


def measured_rates(page: str) -> dict[str, float]:
    """The newest figures of docs/performance.md that a size is held against."""
    claims = _rows(page, "Many workers")[-1]
    points = [
        row
        for row in _rows(page, "Recorded points")
        if row["database"] == "postgresql" and row["metrics of a step"] == "10"
    ]
    syncs = _rows(page, "Rollouts on a server")
    return {
        "claims": _number(claims["claims/s"]),
        "points": _number(points[-1]["points/s"]),
        "sync": statistics.median(_number(row["sync"]) for row in syncs),
    }


def _rows(page: str, heading: str) -> list[dict[str, str]]:
    lines = [line for line in page.split(f"## {heading}\n")[1].split("\n## ")[0].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def _number(cell: str) -> float:
    return float(cell.replace(",", ""))


def _costs(one: dict[str, float], rates: dict[str, float]) -> list[str]:
    shown: list[tuple[str, str]] = [
        ("date, succeeded runs looked at", f"{datetime.now(UTC):%Y-%m-%d}, {one['runs']:.0f}"),
        ("steps; seconds of them", f"{one['steps']:.0f}; {one['seconds']:.0f}"),
        ("metric points in the database, a run", f"{one['points']:,.0f}"),
        ("database, bytes a run (SQLite, beyond an empty one)", f"{one['database']:,.0f}"),
        ("events, bytes a step", f"{one['events'] / one['steps']:,.0f}"),
        ("traces, bytes a rollout in Parquet", f"{one['rollout']:,.0f}"),
        ("kept checkpoints, bytes a run (with optimizer state)", f"{one['checkpoints']:,.0f}"),
        ("claims/s (PostgreSQL, 200 claimers, two cores)", f"{rates['claims']:.0f}"),
        ("points/s (PostgreSQL, 10 a step, two cores)", f"{rates['points']:,.0f}"),
        ("seconds to give a server 0.6 GB of weights", f"{rates['sync']:.1f}"),
    ]
    return ["| of one run, or of the services | measured |", "|---|---|", *(f"| {a} | {b} |" for a, b in shown)]


def _days(name: str, factor: int, one: dict[str, float], rates: dict[str, float]) -> list[str]:
    """What runs of `factor` times the steps need, at each size; checkpoints are as many whatever the length."""
    head = [
        f"Runs {name} ({one['steps'] * factor:,.0f} steps, {one['seconds'] * factor / 3600:.2g} hours on one slot):",
        "",
        "| runs a day | slots at work | claims/s | of the measured | points/s | of the measured | database, GB a day | files, GB a day |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines = []
    for count in _SIZES:
        claims, points = count / _DAY, count * one["points"] * factor / _DAY
        files = count * ((one["events"] + one["traces"]) * factor + one["checkpoints"]) / 1e9
        cells: list[Any] = [
            f"{count:,}", f"{count * one['seconds'] * factor / _DAY:,.1f}", f"{claims:.2g}", f"{claims / rates['claims']:.2%}",
            f"{points:,.1f}", f"{points / rates['points']:.1%}", f"{count * one['database'] * factor / 1e9:,.2f}", f"{files:,.1f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return [*head, *lines, ""]


if __name__ == "__main__":
    main()
