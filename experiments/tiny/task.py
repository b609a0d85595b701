"""The task of the tiny pair: one early decision, then about 200 tokens of mechanical work.

Prompt and completion are words separated by spaces. With two rounds:

    k3 k0 c3 c2 c3 4 N2 |
    m3 1+1 2-3 3+1 ; r2 4 1+1 = 5 5 2-3 = 2 2 3+1 = 3 r1 3 1+1 = 4 4 2-3 = 1 1 3+1 = 2 # 2

The two kinds decide the mode (`m3`), mode and letters decide the three operations, and each round
applies the three operations to the running digit, modulo 10. Every operation word carries its slot
(`2-3` is "minus three" in slot two), so that the work can be followed by looking up the newest word
of that slot: a two-layer model learns it reliably.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

NUM_KINDS = 4
OPERATIONS = (1, 2, 3, -1, -2, -3)
NUM_SLOTS = 3
MAX_ROUNDS = 16
PROBLEM_ROUNDS = range(13, MAX_ROUNDS + 1)


@dataclass(frozen=True)
class Plan:
    """What the first five words of a completion decide."""

    mode: int
    operations: tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    kinds: tuple[int, int]
    letters: tuple[int, ...]
    start: int
    num_rounds: int

    @property
    def prompt(self) -> str:
        kinds = [f"k{kind}" for kind in self.kinds]
        letters = [f"c{letter}" for letter in self.letters]
        return " ".join([*kinds, *letters, str(self.start), f"N{self.num_rounds}", "|"])

    @property
    def mode(self) -> int:
        return sum(self.kinds) % NUM_KINDS

    def plan_for(self, mode: int) -> Plan:
        """The plan that follows from a mode, right or wrong."""
        size = len(OPERATIONS)
        return Plan(mode, tuple(OPERATIONS[(letter + mode) % size] for letter in self.letters))

    @property
    def gold(self) -> str:
        """The completion that solves the problem, without the end-of-text token."""
        return " ".join(write_out(self, self.plan_for(self.mode)))

    @property
    def answer(self) -> str:
        return self.gold.rpartition(" ")[2]


def draw_problem(rng: random.Random, rounds: range = PROBLEM_ROUNDS) -> Problem:
    return Problem(
        kinds=(rng.randrange(NUM_KINDS), rng.randrange(NUM_KINDS)),
        letters=tuple(rng.randrange(len(OPERATIONS)) for _ in range(NUM_SLOTS)),
        start=rng.randrange(10),
        num_rounds=rng.choice(rounds),
    )


def operation_word(slot: int, operation: int) -> str:
    return f"{slot}{operation:+d}"


def add(digit: int, operation: int) -> int:
    return (digit + operation) % 10


def write_out(
    problem: Problem,
    plan: Plan,
    *,
    apply: Callable[[int, int], int] = add,
    answer_offset: int = 0,
) -> list[str]:
    """The words of a completion that executes `plan` as written.

    `apply` computes one step from digit and operation; `answer_offset` is added to the answer only.
    """
    steps = [(operation_word(i, op), op) for i, op in enumerate(plan.operations, start=1)]
    words = [f"m{plan.mode}", *(word for word, _ in steps), ";"]
    digit = problem.start
    for countdown in range(problem.num_rounds, 0, -1):
        words.append(f"r{countdown}")
        for word, operation in steps:
            result = apply(digit, operation)
            words += [str(digit), word, "=", str(result)]
            digit = result
    return [*words, "#", str((digit + answer_offset) % 10)]


def vocabulary() -> list[str]:
    """Every word of the task, special tokens not included."""
    return [
        *("|", ";", "=", "#"),
        *(str(digit) for digit in range(10)),
        *(f"k{kind}" for kind in range(NUM_KINDS)),
        *(f"m{mode}" for mode in range(NUM_KINDS)),
        *(f"c{letter}" for letter in range(len(OPERATIONS))),
        *(operation_word(slot, op) for slot in range(1, NUM_SLOTS + 1) for op in OPERATIONS),
        *(f"N{count}" for count in range(1, MAX_ROUNDS + 1)),
        *(f"r{count}" for count in range(1, MAX_ROUNDS + 1)),
    ]
