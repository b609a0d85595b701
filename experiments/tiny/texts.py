"""Training texts: right ones, corrupted ones that are followed as written, and flawed ones.

On-policy distillation asks the teacher to judge what a student has written, mistakes included.
A teacher that has only seen right texts is lost after the first mistake; so a part of its texts
carries a mistake that the rest of the text follows. The mistaken word itself is not learned.
"""

import random
from dataclasses import dataclass
from typing import Literal, get_args

from experiments.tiny.task import NUM_KINDS, OPERATIONS, Plan, Problem, add, write_out

Flaw = Literal["plan", "skill", "late"]
FLAWS: tuple[Flaw, ...] = get_args(Flaw)

_WRONG_PLAN_SHARE = 0.3
_WRONG_DIGIT_SHARE = 0.02


@dataclass(frozen=True)
class TrainingText:
    prompt: str
    completion: str
    unlearned: frozenset[int] = frozenset()
    """Positions in the completion that carry no loss."""


def followed_text(problem: Problem, rng: random.Random) -> TrainingText:
    """A text that is consistent with itself but not always right."""
    plan, wrong_words = _plan_as_written(problem, rng)
    was_slip: list[bool] = []

    def add_with_slips(digit: int, operation: int) -> int:
        was_slip.append(rng.random() < _WRONG_DIGIT_SHARE)
        return rng.randrange(10) if was_slip[-1] else add(digit, operation)

    words = write_out(problem, plan, apply=add_with_slips)
    result_positions = [i + 1 for i, word in enumerate(words) if word == "="]
    wrong_digits = [i for i, slip in zip(result_positions, was_slip, strict=True) if slip]
    return TrainingText(problem.prompt, " ".join(words), wrong_words | frozenset(wrong_digits))


def flawed_text(problem: Problem, flaw: Flaw) -> TrainingText:
    plan = problem.plan_for(problem.mode)
    match flaw:
        case "plan":  # the second kind is ignored; what follows is executed faithfully
            words = write_out(problem, problem.plan_for(problem.kinds[0]))
        case "skill":  # every subtraction is done as an addition
            words = write_out(problem, plan, apply=lambda digit, op: add(digit, abs(op)))
        case "late":  # only the answer line is wrong
            words = write_out(problem, plan, answer_offset=1)
    return TrainingText(problem.prompt, " ".join(words))


def _plan_as_written(problem: Problem, rng: random.Random) -> tuple[Plan, frozenset[int]]:
    """A plan, sometimes wrong, and the positions of its words that were replaced."""
    if rng.random() >= _WRONG_PLAN_SHARE:
        return problem.plan_for(problem.mode), frozenset()
    if rng.random() < 0.5:
        return problem.plan_for(rng.randrange(NUM_KINDS)), frozenset({0})
    operations = tuple(rng.choice(OPERATIONS) for _ in problem.letters)
    return Plan(problem.mode, operations), frozenset({1, 2, 3})
