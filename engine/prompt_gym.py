"""Prompts that reasoning-gym makes: the tasks of a name, a size, a seed and settings are the same on every machine."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from typing import Any

from engine.prompt_files import FileRow, UnreadableFile
from engine.prompt_reference import GymTasks


def gym_rows(tasks: GymTasks, prompt_column: str, answer_column: str) -> Iterator[FileRow]:
    """The tasks as rows; `entry` holds what the task's own scorer needs to find a task again. Raises UnreadableFile."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise UnreadableFile("needs the package reasoning-gym; install it with pip install 'incipit[real]'")
    import reasoning_gym

    made = _by_its_code(
        lambda: reasoning_gym.create_dataset(tasks.task, size=tasks.size, seed=tasks.seed, **dict(tasks.settings))
    )
    for index in range(tasks.size):
        item = _by_its_code(lambda: made[index])  # noqa: B023  # called at once
        entry = {"task": tasks.task, "seed": tasks.seed, "size": tasks.size, "index": index}
        if tasks.settings:
            entry["settings"] = dict(tasks.settings)
        # A task without one answer, such as a puzzle with many solutions, is for its own scorer.
        answer = "" if item["answer"] is None else str(item["answer"])
        yield FileRow(
            f"task {index + 1}", {prompt_column: item["question"], answer_column: answer, "entry": json.dumps(entry)}
        )


def _by_its_code(make: Callable[[], Any]) -> Any:
    """What a task's own code makes; UnreadableFile for an unknown name, or for settings that it has not, needs or fails with."""
    try:
        return make()
    except Exception as error:
        raise UnreadableFile(f"reasoning-gym cannot make ({str(error)[:200]}); name another task or setting") from error
