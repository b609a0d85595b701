"""The problems that come with the project: prompts to train on, and two held-out sets."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from experiments.tiny.task import PROBLEM_ROUNDS, Problem, draw_problem

SPLIT_SIZES = {"report": 300, "dev": 100, "train": 4096}
_SPLIT_SEED = 2602  # fixed: every trained pair is judged on the same problems


def draw_splits() -> dict[str, list[Problem]]:
    """The splits by name; no problem is in two of them or twice in one."""
    rng = random.Random(_SPLIT_SEED)
    distinct: dict[Problem, None] = {}
    while len(distinct) < sum(SPLIT_SIZES.values()):
        distinct.setdefault(draw_problem(rng))
    problems = iter(distinct)
    return {name: [next(problems) for _ in range(size)] for name, size in SPLIT_SIZES.items()}


def held_out() -> frozenset[Problem]:
    splits = draw_splits()
    return frozenset(splits["dev"] + splits["report"])


def unseen_problems(
    rng: random.Random, excluded: frozenset[Problem], rounds: range = PROBLEM_ROUNDS
) -> Iterator[Problem]:
    """An endless stream of problems that are not among the excluded ones."""
    while True:
        problem = draw_problem(rng, rounds)
        if problem not in excluded:
            yield problem


def write_splits(folder: Path) -> None:
    """Write {train,dev,report}.jsonl; the training split holds prompts only."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, problems in draw_splits().items():
        lines = (json.dumps(_line(problem, name)) for problem in problems)
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), "utf-8")


def _line(problem: Problem, split: str) -> dict[str, str]:
    if split == "train":
        return {"prompt": problem.prompt}
    return {"prompt": problem.prompt, "answer": problem.answer, "completion": problem.gold}
