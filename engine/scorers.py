"""How a completion is marked right or wrong. Values of the spec; they import without torch.

Completions are hostile text: what has to be parsed or computed is marked in a process of its own, see engine/judge.py.
"""

import re
from abc import abstractmethod
from decimal import Decimal
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field

from engine.findings import misfit
from engine.frozen import Frozen
from engine.judge import judged

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_MAX_FOUND = 200  # characters of an answer that votes are counted by; a longer one is not the answer to anything
_MAX_NUMBER = 1000  # characters of a number, which is compared and voted by whole; a longer one is no answer


class Mark(NamedTuple):
    """What a scorer makes of one completion."""

    is_right: bool
    found: str | None
    """The final answer in a normal form, equal for equal answers, by which maj@k counts votes; None when there is none."""


class _Scorer(Frozen):
    @abstractmethod
    def mark(self, completion: str, answer: str, entry: str | None = None) -> Mark:
        """Verdict and final answer; `entry` is what a generated problem is checked with, see engine.prompts.PromptRow."""

    def is_right(self, completion: str, answer: str, entry: str | None = None) -> bool:
        """Whether the completion has the answer."""
        return self.mark(completion, answer, entry).is_right


class FinalNumber(_Scorer):
    """Right when the last number of the completion equals the answer (the usual check for word problems)."""

    kind: Literal["final_number"] = "final_number"

    def mark(self, completion: str, answer: str, entry: str | None = None) -> Mark:
        """Whether the last number in `completion` has the very value of `answer`; commas between digits are ignored."""
        found = _last_number(completion)
        return Mark(found is not None and found == _last_number(answer), found)


class AfterMarker(_Scorer):
    """Right when the text behind the last marker equals the answer, spaces at its ends ignored."""

    kind: Literal["after_marker"] = "after_marker"
    marker: Annotated[str, Field(min_length=1, max_length=64)] = "#"
    """The text that introduces the answer, such as # or `The answer is`."""

    def mark(self, completion: str, answer: str, entry: str | None = None) -> Mark:
        """Whether what follows the last marker is `answer`; without a marker the completion is wrong."""
        _, marker, tail = completion.rpartition(self.marker)
        return Mark(bool(marker) and tail.strip() == answer.strip(), tail.strip()[:_MAX_FOUND] if marker else None)


class ExactMatch(_Scorer):
    """Right when the whole completion equals the answer, whatever the white space between its words."""

    kind: Literal["exact_match"] = "exact_match"

    def mark(self, completion: str, answer: str, entry: str | None = None) -> Mark:
        """Whether completion and answer have the same words in the same order."""
        found = " ".join(completion.split())
        return Mark(found == " ".join(answer.split()), found[:_MAX_FOUND] or None)


class MathVerify(_Scorer):
    """Right when math-verify finds the final expression (in `\\boxed{}`, LaTeX or plain) equal in value to the answer."""

    kind: Literal["math_verify"] = "math_verify"
    timeout_seconds: Annotated[float, Field(ge=0.1, le=60)] = 5.0
    """Time for one completion, as in math-verify itself; one that needs longer is wrong."""

    def mark(self, completion: str, answer: str, entry: str | None = None) -> Mark:
        """The answer is parsed as LaTeX and goes first, since verify is not symmetric."""
        verdict = judged({"kind": "math_verify", "completion": completion, "answer": answer}, self.timeout_seconds)
        return Mark(verdict.is_right, verdict.found)


class MultipleChoice(_Scorer):
    """Right when the last letter that the completion chooses is the answer's."""

    kind: Literal["multiple_choice"] = "multiple_choice"
    form: Literal["answer_is", "parentheses"] = "answer_is"
    """How a choice is written: `answer is (C)`, letters A to J, as in MMLU-Pro; or `(C)`, letters A to D, as in GPQA."""

    def mark(self, completion: str, answer: str, entry: str | None = None) -> Mark:
        """The regular expressions are those of MMLU-Pro and GPQA; that the last match counts is ours."""
        letters = _CHOICE[self.form].findall(completion)
        return Mark(bool(letters) and letters[-1] == answer.strip(), letters[-1] if letters else None)


def _has_a_safe_scorer(task: str) -> str:
    if task in EVALUATED_TASKS:
        raise misfit(
            "evaluation.scorer.task",
            f"evaluation.scorer.task is {task!r}, whose scorer in reasoning-gym runs the completion as Python code; "
            "choose another task.",
        )
    return task


class ReasoningGym(_Scorer):
    """Right when the task's own scorer of reasoning-gym gives at least `least_score`."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    task: Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=64), AfterValidator(_has_a_safe_scorer)]
    """Name of the task, such as chain_sum."""
    least_score: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Score from which a completion counts as right; some tasks give a part of the point for a nearly right answer."""

    def mark(self, completion: str, answer: str, entry: str | None = None) -> Mark:
        """The text between the last <answer> and </answer>, or else the whole completion, is what the task scores."""
        request = {"kind": "reasoning_gym", "task": self.task, "completion": completion, "entry": entry}
        verdict = judged(request | {"least_score": self.least_score}, _GYM_SECONDS)
        return Mark(verdict.is_right, verdict.found)


EVALUATED_TASKS = frozenset(
    {"intermediate_integration", "n_queens", "polynomial_multiplication", "simple_integration", "string_insertion"}
)
"""Tasks of reasoning-gym whose scorers pass the completion to `eval` and need letters in it; they are refused."""
_GYM_SECONDS = 10.0  # some scorers solve the puzzle again
_CHOICE = {"answer_is": re.compile(r"answer is \(?([A-J])\)?"), "parentheses": re.compile(r"\(([A-D])\)")}


def _last_number(text: str) -> str | None:
    """The last number in one form for each value, to the last digit: a float would take neighbours for equal."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    number = found[-1].replace(",", "")
    if "." in number:
        number = number.rstrip("0")  # a model that cannot stop writing zeros has still said the number
    if len(number) > _MAX_NUMBER:
        return None
    exact = format(Decimal(number), "f")
    if "." in exact:
        exact = exact.rstrip("0").rstrip(".")
    return "0" if exact == "-0" else exact


Scorer = Annotated[
    FinalNumber | AfterMarker | ExactMatch | MathVerify | MultipleChoice | ReasoningGym, Field(discriminator="kind")
]
