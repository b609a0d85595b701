"""A whole training step of our engine against TRL's DistillationTrainer, on the same models, prompts and lengths.

    pip install -e '.[peer]'; incipit models fetch smollm2
    python -m benchmarks.peer_step [--pairs random smollm2] [--batches 4 16] [--tokens 32 128] [--dtypes float32 bfloat16]
                                   [--rounds 3] [--json]

Two processes of one thread stay open and step in alternation (A B A B …), so that a busy machine slows both; medians count.
bfloat16 is our `precision: bfloat16` (float32 weights are trained, bf16 computes) against TRL with models loaded in bfloat16.
Linux only: memory is the peak of resident memory beyond the open models.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.pairs import PAIRS, case_parser, opened_pair

SIDES = ("incipit", "trl")
WARM_UP = 1  # rounds that are not counted
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
_TITLES = (
    "pair", "dtype", "batch", "tokens", "ours, CPU s", "TRL, CPU s",
    "ratio", "wall", "rollouts", "update", "ours, MB", "TRL, MB", "memory",
)  # fmt: skip


class Side:
    """A process that waits for its next step."""

    def __init__(self, side: str, pair: str, folder: Path, batch: int, tokens: int, dtype: str) -> None:
        command = [sys.executable, "-m", "benchmarks.peer_side", side, "--pair", pair, "--folder", str(folder)]
        command += ["--batch", str(batch), "--tokens", str(tokens), "--dtype", dtype]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed with the process
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=os.environ | _ONE_THREAD,
        )  # fmt: skip
        self._line("ready")

    def step(self) -> dict[str, float]:
        """Seconds and memory of one step."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer: dict[str, float] = json.loads(self._line("{"))
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()

    def _line(self, beginning: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:  # libraries print as well
            if line.startswith(beginning):
                return line
        self.errors.seek(0)
        raise RuntimeError(f"A side of the comparison ended:\n{self.errors.read()[-3000:]}")


def compared(pair: str, dtype: str, batch: int, tokens: int, folder: Path, rounds: int) -> dict[str, Any]:
    """Medians of both sides and their ratios (above 1: ours is faster; of memory, below 1: ours needs less)."""
    sides: dict[str, Side] = {}
    try:
        sides = {name: Side(name, pair, folder, batch, tokens, dtype) for name in SIDES}
        taken = [{name: side.step() for name, side in sides.items()} for _ in range(WARM_UP + rounds)][WARM_UP:]
    finally:
        for side in sides.values():
            side.close()
    ours, theirs = (
        {key: statistics.median(one[name][key] for one in taken) for key in taken[0][name]} for name in SIDES
    )
    return {
        "pair": pair,
        "dtype": dtype,
        "batch": batch,
        "tokens": tokens,
        "incipit": ours,
        "trl": theirs,
        "cpu_ratio": theirs["cpu"] / ours["cpu"],
        "wall_ratio": theirs["wall"] / ours["wall"],
        "rollout_ratio": theirs["rollout_cpu"] / ours["rollout_cpu"],
        "update_ratio": (theirs["cpu"] - theirs["rollout_cpu"]) / (ours["cpu"] - ours["rollout_cpu"]),
        "memory_ratio": ours["memory"] / theirs["memory"],
    }


def row(one: dict[str, Any]) -> list[str]:
    """A comparison as cells of a table, see `_TITLES`."""
    ours, theirs = one["incipit"], one["trl"]
    return [
        one["pair"],
        one["dtype"],
        str(one["batch"]),
        str(one["tokens"]),
        f"{ours['cpu']:.2f}",
        f"{theirs['cpu']:.2f}",
        *(f"{one[f'{name}_ratio']:.2f}" for name in ("cpu", "wall", "rollout", "update")),
        f"{ours['memory'] / 1e6:.0f}",
        f"{theirs['memory'] / 1e6:.0f}",
        f"{one['memory_ratio']:.2f}",
    ]


def main() -> int:
    parser = case_parser(__doc__, batches=[4, 16], tokens=[32, 128])
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    arguments = parser.parse_args()
    if importlib.util.find_spec("trl") is None:
        print("TRL is not installed; add it with: pip install -e '.[peer]'.", file=sys.stderr)
        return 1
    results = []
    with tempfile.TemporaryDirectory(prefix="peer-models-") as models:
        if not arguments.json:
            print(" | ".join(_TITLES))
        cases = itertools.product(arguments.pairs, arguments.dtypes, arguments.batches, arguments.tokens)
        for pair, dtype, batch, tokens in cases:
            folder = Path(models)
            try:
                opened_pair(pair, folder)  # writes the random models once for both sides
            except FileNotFoundError as error:
                print(error, file=sys.stderr)
                return 1
            results.append(compared(pair, dtype, batch, tokens, folder, arguments.rounds))
            if not arguments.json:
                print(" | ".join(row(results[-1])), flush=True)
    if arguments.json:
        print(json.dumps({"rounds": arguments.rounds, "results": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
