"""Whether overlap pays: steps of whole runs with and without it, in alternation (A B A B), one thread each and two cores.

    incipit models fetch smollm2
    python -m benchmarks.overlap_step [--rounds 2] [--steps 6] [--json]

The run is experiments/smollm2-prefix-32.json, cut to a few steps without evaluation beside the first. Seconds are the medians of the
`total` of all steps behind the first two of each run, whose kernels are not warm.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from engine.events import StepDone, read_events

_ROOT = Path(__file__).resolve().parents[1]
_WARM_UP = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(arguments.rounds):
        for overlaps, taken in seconds.items():
            taken += _steps(overlaps, arguments.steps)
    plain, overlapped = (statistics.median(taken) for taken in seconds.values())
    result = {"steps": len(seconds[True]), "plain": plain, "overlapped": overlapped, "ratio": plain / overlapped}
    print(json.dumps({"results": [result]}) if arguments.json else result)
    return 0


def _steps(overlaps: bool, num_steps: int) -> list[float]:
    """Seconds of the steps of one run in a process of its own."""
    spec: dict[str, Any] = json.loads((_ROOT / "experiments" / "smollm2-prefix-32.json").read_text("utf-8"))
    spec |= {"num_steps": num_steps, "overlap": overlaps, "traces": {"num_rollouts": 0}}
    spec["evaluation"] |= {"num_prompts": 1, "num_sampled": 1, "every_steps": 1000, "report_path": None}
    spec["evaluation"] |= {"num_teacher_texts": 0}
    spec["optimizer"] |= {"warmup_steps": 1}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory(prefix="incipit-overlap-") as folder:
        path = Path(folder) / "spec.json"
        path.write_text(json.dumps(spec))
        command = [sys.executable, "-m", "engine", "train", "--spec", str(path), "--out", folder]
        subprocess.run(command, cwd=_ROOT, env=environment, check=True, capture_output=True)
        (events,) = Path(folder).glob("attempts/*/events.jsonl")
        done = [event for event, _ in read_events(events) if isinstance(event, StepDone)]
    return [event.seconds["total"] for event in done[_WARM_UP:]]


if __name__ == "__main__":
    sys.exit(main())
