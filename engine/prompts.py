"""Prompt files: JSONL with one object per line, `prompt` and optionally `answer` and `completion`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from engine.errors import RunError
from engine.findings import Finding
from engine.locations import resolve

_MAX_LINE_BYTES = 4_000_000  # a longer line is a mistake (a file without newlines), not a prompt
_MAX_REPORTED = 5  # findings per file; the rest are counted


@dataclass(frozen=True)
class PromptRow:
    """One line of a prompt file."""

    prompt: str
    answer: str | None = None
    completion: str | None = None
    """The reference text, where the whole completion can be compared."""


def read_prompts(
    reference: str, field: str, *, limit: int | None = None, need_answer: bool = False, need_completion: bool = False
) -> list[PromptRow]:
    """The rows of a prompt file, at most `limit` of them.

    Raises RunError("bad_data") with findings at `field`, each with its line number, when the file is missing, empty,
    malformed or has empty prompts.
    """
    rows: list[PromptRow] = []
    problems: list[str] = []
    with _opened(reference, field) as file:
        for number, line in enumerate(file, start=1):
            if limit is not None and len(rows) >= limit:
                break
            row = _row(line, need_answer, need_completion)
            if isinstance(row, PromptRow):
                rows.append(row)
            else:
                problems.append(f"{field}: line {number} of {reference!r} {row}")
    if problems:
        shown = problems[:_MAX_REPORTED]
        if len(problems) > _MAX_REPORTED:
            shown[-1] += f" ({len(problems) - _MAX_REPORTED} more lines have problems.)"
        raise _bad_data(field, shown)
    if not rows:
        raise _bad_data(field, [f"{field}: {reference!r} has no lines; give it at least one prompt."])
    return rows


def _opened(reference: str, field: str) -> BinaryIO:
    try:
        path = Path(resolve(reference)).expanduser()
        if path.is_file():
            return path.open("rb")
        problem = "there is no such file on this machine"
    except OSError as error:
        problem = f"it cannot be read ({error.strerror})"
    except ValueError:
        problem = "it leads out of its folder"
    raise _bad_data(field, [f"{field} is {reference!r}, but {problem}; correct the path."])


def _row(line: bytes, need_answer: bool, need_completion: bool) -> PromptRow | str:
    """The row, or what is wrong with the line."""
    if len(line) > _MAX_LINE_BYTES:
        return f"has {len(line)} bytes, the limit is {_MAX_LINE_BYTES}; put one object on each line."
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return f"is not JSON ({error}); write one object per line."
    if not isinstance(value, dict):
        return 'is not an object; write {"prompt": …} on each line.'
    prompt, answer, completion = value.get("prompt"), value.get("answer"), value.get("completion")
    if not isinstance(prompt, str) or not prompt.strip():
        return "has no text under 'prompt'; fill it in or remove the line."
    if need_answer and not isinstance(answer, str):
        return "has no text under 'answer'; evaluation needs one to compare with."
    if completion is not None and not isinstance(completion, str):
        return "has something other than text under 'completion'; correct it or remove the key."
    if need_completion and not (completion or "").strip():
        return "has no text under 'completion'; add it, or let a model write the completions."
    return PromptRow(prompt, answer if isinstance(answer, str) else None, completion)


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
