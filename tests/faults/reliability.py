"""docs/reliability.md: what the last complete `make test-faults` found, and one line for each `make soak`."""

import os
import platform
import re
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

_ROOT = Path(__file__).parents[2]
PAGE = _ROOT / "docs" / "reliability.md"
NUM_FAULTS = 28

_HEAD = """# Reliability

`make test-faults` breaks real processes in each of these ways and writes the table; `make soak` adds a line to the second
one. Nothing here is written by hand. After every fault these promises are checked on what was recorded
(`tests/faults/promises.py`): the history has no gaps, every move in it is allowed and it tells the state; fences rise; each
step is recorded once, by the last attempt that took it; every listed checkpoint verifies; no process is left over.

*Tried* counts injections. *Steps lost* were trained again from the last checkpoint, *twice* are steps that are recorded more
than once or by an attempt that was replaced. *Recovered* is the longest time from an injection until the run went on with new
steps, or until what the fault is about held again, on the machine that is named.
"""
_FAULT_COLUMNS = (
    "| # | fault | injected by | tried | steps lost | twice | recovered | result |\n|--|--|--|--|--|--|--|--|\n"
)
_SOAK_COLUMNS = "| date | commit | minutes | seed | runs ended | faults | steps lost | twice | result |\n|--|--|--|--|--|--|--|--|--|\n"


@dataclass
class Record:
    """What is known of one fault."""

    number: int
    name: str
    how: str
    """How it is injected, in a few words; where it is simulated this says so."""
    tried: int = 0
    steps_lost: int = 0
    steps_twice: int = 0
    seconds: list[float] = field(default_factory=list)
    """From each injection to the recovery from it, where that was measured."""
    outcomes: list[str] = field(default_factory=list)
    """Of its tests: passed, failed."""

    @property
    def row(self) -> str:
        result = "holds" if self.outcomes and set(self.outcomes) == {"passed"} else "**fails**"
        recovered = f"{max(self.seconds):.1f} s" if self.seconds else "–"
        figures = f"{self.tried} | {self.steps_lost} | {self.steps_twice} | {recovered} | {result}"
        return f"| {self.number} | {self.name} | {self.how} | {figures} |"


def write_faults(records: list[Record], seconds: float, commit: str) -> None:
    """Replace the table of faults; `commit` is what was tested."""
    rows = "\n".join(record.row for record in sorted(records, key=lambda record: record.number))
    when = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit}, {os.cpu_count()} cores, {platform.system()}, "
        f"{seconds / 60:.1f} minutes."
    )
    _write(f"{when}\n\n{_FAULT_COLUMNS}{rows}\n", _section("Soak") or _SOAK_COLUMNS)


def add_soak(
    *, commit: str, minutes: float, seed: int, num_runs: int, num_faults: int, lost: int, twice: int, result: str
) -> str:
    """Add a line to the table of soaks, and return it."""
    row = (
        f"| {datetime.now(UTC):%Y-%m-%d %H:%M} | {commit} | {minutes:g} | {seed} | {num_runs} | {num_faults} | {lost} "
        f"| {twice} | {result} |"
    )
    _write(_section("Faults") or _FAULT_COLUMNS, (_section("Soak") or _SOAK_COLUMNS) + row + "\n")
    return row


def commit_now() -> str:
    """The commit that is checked out, with a word when files differ from it; the page itself does not count."""
    return _git("rev-parse", "--short", "HEAD") + (
        " with changes" if _git("status", "--porcelain", "--", ".", ":!docs/reliability.md") else ""
    )


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()


def _section(title: str) -> str:
    """What stands below a heading now; empty when there is nothing."""
    found = re.search(rf"^## {title}\n\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S) if PAGE.exists() else None
    return found[1].rstrip("\n") + "\n" if found else ""


def _write(faults: str, soak: str) -> None:
    PAGE.write_text(f"{_HEAD}\n## Faults\n\n{faults.rstrip()}\n\n## Soak\n\n{soak.rstrip()}\n")
