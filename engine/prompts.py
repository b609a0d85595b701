"""Prompts of a run: read from a file, the hub or reasoning-gym, and drawn for each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine.errors import RunError
from engine.findings import Finding
from engine.locations import resolve
from engine.prompt_files import FileRow, MissingColumn, UnreadableFile, file_rows
from engine.prompt_reference import GymTasks, HubDataset, ReadyTask, UploadedPrompts, parsed_reference
from engine.prompt_spec import PromptColumns
from engine.uploaded_prompts import verified_upload

_MAX_REPORTED = 5  # findings per file; the rest are counted


@dataclass(frozen=True)
class PromptRow:
    """One prompt."""

    prompt: str
    answer: str | None = None
    completion: str | None = None
    """The reference text, where the whole completion can be compared."""
    entry: str | None = None
    """JSON by which the scorer of a reasoning-gym task finds the task again: task, seed, size, index."""
    tag: str | None = None
    """What it belongs to, where its row says so."""
    place: str = field(default="", compare=False)
    """Where it was read, such as `line 3 of 'prompts.jsonl'`."""


def read_prompts(
    reference: str,
    field: str,
    *,
    columns: PromptColumns | None = None,
    limit: int | None = None,
    need_answer: bool = False,
    need_completion: bool = False,
) -> list[PromptRow]:
    """The rows that a reference stands for (see engine/prompt_reference.py), at most `limit` of them.

    Raises RunError("bad_data") with findings at `field`, each with its line or row, when there is nothing to read, or
    something is malformed or has empty prompts.
    """
    columns = columns or PromptColumns()
    rows: list[PromptRow] = []
    problems: list[str] = []
    try:
        for found in _rows(reference, field, columns, need_answer):
            if limit is not None and len(rows) >= limit:
                break
            row = found.problem or _row(found, columns, need_answer, need_completion)
            if isinstance(row, PromptRow):
                rows.append(row)
            else:
                problems.append(f"{field}: {found.place} {row}")
    except MissingColumn as error:
        raise _no_column(reference, field, columns, error) from None
    except UnreadableFile as error:
        raise _bad_data(field, [f"{field} is {reference!r}, which {error}."]) from None
    except OSError as error:
        raise _bad_data(field, [_bad_path(reference, field, f"it cannot be read ({error.strerror})")]) from None
    if problems:
        shown = problems[:_MAX_REPORTED]
        if len(problems) > _MAX_REPORTED:
            shown[-1] += f" ({len(problems) - _MAX_REPORTED} more have problems.)"
        raise _bad_data(field, shown)
    if not rows:
        raise _bad_data(field, [f"{field}: {reference!r} has no rows; give it at least one prompt."])
    return rows


def pinned(reference: str, field: str) -> str:
    """The reference that will stand for the same rows tomorrow: of a data set of the hub, with its commit.

    Raises RunError("bad_data").
    """
    try:
        source = parsed_reference(reference)
        if isinstance(source, HubDataset):
            from engine.prompt_hub import hub_files

            return source.at(hub_files(source).commit)
        if isinstance(source, ReadyTask) and source.folder is None:
            from engine.tasks import task_files

            return str(ReadyTask(source.name, revision=task_files(source).commit))
    except UnreadableFile as error:
        raise _bad_data(field, [f"{field} is {reference!r}, which {error}."]) from None
    except ValueError as error:
        raise _bad_data(field, [f"{field} is {reference!r}, but {error}"]) from None
    return reference


def _rows(reference: str, field: str, columns: PromptColumns, need_answer: bool) -> Iterator[FileRow]:
    """The rows of a reference, each with its place in words. The format is chosen here and nowhere else."""
    wanted = [columns.prompt_column, columns.answer_column, columns.completion_column, columns.tag_column]
    default = PromptColumns()
    needed = [columns.prompt_column] + ([columns.answer_column] if need_answer else [])
    # A column that somebody names on purpose must be there.
    needed += [
        name
        for name, usual in zip(
            wanted[1:], (default.answer_column, default.completion_column, default.tag_column), strict=True
        )
        if name != usual
    ]
    try:
        source = parsed_reference(reference)
    except ValueError as error:
        raise _bad_data(field, [f"{field} is {reference!r}, but {error}"]) from None
    if isinstance(source, GymTasks):
        from engine.prompt_gym import gym_rows

        paths: list[tuple[str, Iterator[FileRow]]] = [
            (reference, gym_rows(source, columns.prompt_column, columns.answer_column))
        ]
    elif isinstance(source, ReadyTask):
        from engine.tasks import task_rows

        yield from task_rows(source, columns.prompt_column, columns.answer_column)
        return
    elif isinstance(source, HubDataset):
        from engine.prompt_hub import hub_files

        paths = [(path.name, file_rows(path, wanted, needed)) for path in hub_files(source).paths]
    elif isinstance(source, UploadedPrompts):
        paths = [(reference, file_rows(verified_upload(source.sha256), wanted, needed))]
    else:
        paths = [(reference, file_rows(_file(reference, field), wanted, needed))]
    for name, rows in paths:
        for row in rows:
            yield FileRow(f"{row.place} of {name!r}", row.values, row.problem)


def _file(reference: str, field: str) -> Path:
    try:
        path = Path(resolve(reference)).expanduser()
        if path.is_file():
            return path
        problem = "there is no such file on this machine"
    except OSError as error:
        problem = f"it cannot be read ({error.strerror})"
    except ValueError:
        problem = "it leads out of its folder"
    raise _bad_data(field, [_bad_path(reference, field, problem)])


def _row(found: FileRow, columns: PromptColumns, need_answer: bool, need_completion: bool) -> PromptRow | str:
    """The row, or what is wrong with it."""
    values = found.values or {}
    prompt = values.get(columns.prompt_column)
    answer, completion = values.get(columns.answer_column), values.get(columns.completion_column)
    noun = found.place.partition(" ")[0]
    if not isinstance(prompt, str) or not prompt.strip():
        return f"has no text under {columns.prompt_column!r}; fill it in or remove the {noun}."
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)  # tables of numbers have numbers for answers
    if need_answer and not isinstance(answer, str):
        return f"has no text under {columns.answer_column!r}; evaluation needs one to compare with."
    if completion is not None and not isinstance(completion, str):
        return f"has something other than text under {columns.completion_column!r}; correct it or remove the key."
    if need_completion and not (completion or "").strip():
        return f"has no text under {columns.completion_column!r}; add it, or let a model write the completions."
    entry = values.get("entry") if noun == "task" else None
    tag = values.get(columns.tag_column)
    if tag is not None and not isinstance(tag, str) and columns.tag_column != PromptColumns().tag_column:
        return f"has something other than text under {columns.tag_column!r}; correct it or remove the key."
    return PromptRow(
        prompt,
        answer if isinstance(answer, str) else None,
        completion,
        entry,
        tag if isinstance(tag, str) else None,
        found.place,
    )


def _no_column(reference: str, field: str, columns: PromptColumns, error: MissingColumn) -> RunError:
    """At the field that names the column."""
    names = {getattr(columns, name): name for name in PromptColumns.model_fields}
    setting = f"{field.rpartition('.')[0]}.{names[error.column]}".lstrip(".")
    message = f"{field} is {reference!r}, which {error}; set {setting} to one of them."
    return RunError("bad_data", message, [Finding(field=setting, message=message)])


def _bad_path(reference: str, field: str, problem: str) -> str:
    return f"{field} is {reference!r}, but {problem}; correct the path."


def _bad_data(field: str, messages: list[str]) -> RunError:
    return RunError("bad_data", messages[0], [Finding(field=field, message=message) for message in messages])


def prompts_of_step(num_prompts: int, seed: int, step: int, prompts_per_step: int) -> list[int]:
    """Prompt indices of a step (counted from 0), computed directly, so that a resumed run needs no cursor.

    Every prompt comes once per epoch, in an order that depends on seed and epoch alone: draw d is entry
    d mod num_prompts of epoch d // num_prompts.
    """
    draws = range(step * prompts_per_step, (step + 1) * prompts_per_step)
    orders: dict[int, list[int]] = {}
    indices = []
    for draw in draws:
        epoch = draw // num_prompts
        if epoch not in orders:
            orders[epoch] = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(num_prompts).tolist()
        indices.append(orders[epoch][draw % num_prompts])
    return indices
