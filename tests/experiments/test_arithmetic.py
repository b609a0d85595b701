"""The problems that the real pair is trained on and asked are those that their script writes, and none is in two files."""

import json
from pathlib import Path

from engine.locations import resolve
from experiments.smollm2.arithmetic import splits


def test_the_committed_problems_are_those_that_reasoning_gym_makes() -> None:
    folder = Path(resolve("builtin:smollm2")) / "data"
    kept = {
        path.stem: [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in folder.glob("*.jsonl")
    }
    assert kept == splits()
    prompts = [row["prompt"] for rows in kept.values() for row in rows]
    assert len(set(prompts)) == len(prompts)
    assert {name: len(rows) for name, rows in kept.items()} == {
        "products-train": 60,
        "products-dev": 40,
        "sums-and-divisors": 96,
    }
