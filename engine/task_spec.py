"""Ready evaluation tasks: where the problems come from, how they are asked and how answers are marked. Light.

`experiments/tasks/NAME.json` holds one; `task:NAME` names it in a spec. Every figure in a file has its source beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from engine.evaluation_spec import AnswerSampling
from engine.frozen import Frozen
from engine.locations import resolve
from engine.prompt_reference import ReadyTask, parsed_reference
from engine.scorers import Scorer


class ShuffledChoices(Frozen):
    """Choices in columns of their own, the right one first; their order is drawn for each problem."""

    kind: Literal["shuffled"] = "shuffled"
    columns: Annotated[list[str], Field(min_length=2, max_length=10)]
    seed: int
    """The order of a problem's choices depends on this and on its number alone, so it is the same in every run."""


class ListedChoices(Frozen):
    """Choices in one column that holds a list; the answer column has the letter."""

    kind: Literal["listed"] = "listed"
    column: str


class TaskSampling(AnswerSampling):
    """How a source draws the samples of each problem, and how long completions may become."""

    samples_per_prompt: Annotated[int, Field(ge=0, le=1024)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)]
    source: str
    """Where these figures were read."""


class TaskFile(Frozen):
    """One task."""

    title: str
    dataset: str
    """Id of the data set on the hub."""
    subset: str | None = None
    split: str
    num_problems: int
    question_column: str
    answer_column: str
    answer_marker: str | None = None
    """The answer is what follows the last of these in its column; None when the column holds the answer alone."""
    choices: Annotated[ShuffledChoices | ListedChoices, Field(discriminator="kind")] | None = None
    prompt: str
    """Wording; {question} and {choices} are filled in."""
    scorer: Scorer
    sampling: dict[str, TaskSampling]
    """Ways to sample, by name; `greedy` alone has no samples."""
    sources: dict[str, str]
    """Where the facts of this file were read."""


def task_file(name: str) -> TaskFile:
    """A ready task, by a name in `engine.prompt_reference.ready_tasks()`."""
    return TaskFile.model_validate_json((Path(resolve("builtin:tasks")) / f"{name}.json").read_text())


def scorer_of(reference: str, chosen: Scorer) -> Scorer:
    """What marks the completions of a file: a ready task has a scorer of its own, any other file the one that was chosen."""
    source = parsed_reference(reference)
    return task_file(source.name).scorer if isinstance(source, ReadyTask) else chosen
