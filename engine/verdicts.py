"""Which problems an evaluation found answered rightly: what paired tests between runs need. It imports without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import Field

from engine.frozen import Frozen

MAX_PROBLEMS = 20_000  # more would make events of megabytes; MMLU-Pro has 12,032


class Verdicts(Frozen):
    """Verdicts by problem, in the order of the prompts."""

    problems: str
    """Hash of all prompts and answers: only evaluations that share it can be paired."""
    right: Annotated[str, Field(pattern=r"^[01]*$", max_length=MAX_PROBLEMS)]
    """A digit for each problem: 1 where the greedy completion is right."""
    samples_per_problem: int = 0
    """Samples behind `samples_right`."""
    samples_right: list[int] = []
    """How many samples of each problem are right; empty without samples."""

    def greedy(self) -> list[bool]:
        """Whether the greedy completion is right, by problem."""
        return [digit == "1" for digit in self.right]


def verdicts_of(
    problems: Iterable[tuple[str, str | None]],
    right: Sequence[bool],
    samples_right: Sequence[int] = (),
    samples_per_problem: int = 0,
) -> Verdicts | None:
    """The record of an evaluation; None when there are too many problems to keep."""
    if len(right) > MAX_PROBLEMS:
        return None
    digest = hashlib.sha256(json.dumps(list(problems)).encode()).hexdigest()[:16]
    return Verdicts(
        problems=digest,
        right="".join("1" if verdict else "0" for verdict in right),
        samples_per_problem=samples_per_problem,
        samples_right=list(samples_right),
    )
