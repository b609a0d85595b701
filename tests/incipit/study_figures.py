"""Figures of studies for tests: runs as they might have gone, and the document of a study."""

import json
from pathlib import Path
from typing import Any

from incipit.study_data import Figure

ROOT = Path(__file__).parents[2]
T_95 = {1: 12.706204736, 2: 4.302652730, 3: 3.182446305, 4: 2.776445105}
"""Two-sided, by degrees of freedom."""


def figures(
    arm: str, seed: int, values: list[float], flops: float, split: str = "dev", machine: str = "m"
) -> list[Figure]:
    """Evaluations at steps 0, 10, 20, …, each step of so many FLOPs and two seconds."""
    return [
        Figure(
            arm,
            seed,
            "s",
            "base" if at == 0 else "student",
            split,
            10 * at,
            10 * at * flops,
            20.0 * at,
            machine,
            "accuracy",
            value,
        )
        for at, value in enumerate(values)
    ]


def study_document(**changes: object) -> dict[str, Any]:
    return json.loads((ROOT / "experiments/studies/prefix-vs-full.json").read_text()) | changes  # type: ignore[no-any-return]
