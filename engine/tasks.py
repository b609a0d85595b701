"""The problems of a ready task as prompt rows: from the hub, this machine's cache of it, or a local copy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.prompt_files import FileRow, MissingColumn, UnreadableFile, file_rows
from engine.prompt_hub import HubFiles, hub_files, local_files
from engine.prompt_reference import HubDataset, ReadyTask
from engine.task_spec import ListedChoices, ShuffledChoices, TaskFile, task_file

_LETTERS = "ABCDEFGHIJ"


def task_files(reference: ReadyTask) -> HubFiles:
    """The data files of a task and their commit (empty for a local copy). Raises UnreadableFile."""
    task = task_file(reference.name)
    dataset = HubDataset(task.dataset, reference.revision, task.split, task.subset)
    if reference.folder is None:
        return hub_files(dataset)
    return local_files(Path(reference.folder).expanduser(), dataset)


def task_rows(reference: ReadyTask, prompt_column: str, answer_column: str) -> Iterator[FileRow]:
    """Rows with the prompt and the answer under these names, each with its place. Raises UnreadableFile and OSError."""
    task = task_file(reference.name)
    columns = _columns(task)
    number = 0
    for path in task_files(reference).paths:
        try:
            for row in file_rows(path, columns, columns):
                asked = row.problem if row.values is None else _asked(task, row.values, number)
                number += 1
                place = f"{row.place} of {path.name!r}"
                if isinstance(asked, str):
                    yield FileRow(place, None, asked)
                else:
                    yield FileRow(place, {prompt_column: asked[0], answer_column: asked[1]})
        except MissingColumn as error:  # not a column that the spec could name
            raise UnreadableFile(f"is no copy of {task.dataset}: {path.name!r} {error}; get a sound copy") from None


def _columns(task: TaskFile) -> list[str]:
    match task.choices:
        case ShuffledChoices(columns=columns):
            return [task.question_column, *columns]
        case ListedChoices(column=column):
            return [task.question_column, task.answer_column, column]
    return [task.question_column, task.answer_column]


def _asked(task: TaskFile, values: Mapping[str, Any], number: int) -> tuple[str, str] | str:
    """Prompt and answer of one problem, or what is wrong with it; `number` counts from 0 over all files."""
    question = values.get(task.question_column)
    if not isinstance(question, str) or not question.strip():
        return f"has no text under {task.question_column!r}; get a sound copy."
    answer = str(values.get(task.answer_column, "")).strip()
    if task.answer_marker is not None:
        answer = answer.rpartition(task.answer_marker)[2].strip()
    choices: list[str] = []
    if isinstance(task.choices, ShuffledChoices):
        order = np.random.Generator(np.random.Philox(key=[task.choices.seed, number])).permutation(
            len(task.choices.columns)
        )
        choices = [str(values.get(task.choices.columns[place_of])).strip() for place_of in order]
        answer = _LETTERS[int(np.flatnonzero(order == 0)[0])]
    elif isinstance(task.choices, ListedChoices):
        found = values.get(task.choices.column)
        if not isinstance(found, list) or not 2 <= len(found) <= len(_LETTERS):
            return f"has no list of 2 to 10 choices under {task.choices.column!r}; get a sound copy."
        choices = [str(choice).strip() for choice in found]
        if answer not in _LETTERS[: len(choices)]:
            return f"has the answer {answer[:20]!r}, which is no letter of its choices; get a sound copy."
    listed = "\n".join(f"({letter}) {choice}" for letter, choice in zip(_LETTERS, choices, strict=False))
    filled = {"question": question.strip(), "choices": listed}
    # In one pass: a question that contains {choices} stays as it is.
    prompt = re.sub(r"\{(question|choices)\}", lambda found: filled[found[1]], task.prompt)
    return prompt, answer
