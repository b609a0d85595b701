"""What a reference to prompts stands for: a file, an upload, a data set of the hub, or tasks of reasoning-gym. Light."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, quote

from engine.locations import resolve
from engine.uploaded_prompts import SCHEME, is_sha256

T = TypeVar("T")

_MAX_GENERATED = 1_000_000
_MAX_SEED = 2**32 - 1
_MAX_SETTING = 10_000
_REPOSITORY = re.compile(r"(?P<name>[\w.-]{1,96}/[\w.-]{1,96})(@(?P<revision>[\w./-]{1,128}))?")
_TASK = re.compile(r"[a-z0-9_]{1,64}")
_WORD = re.compile(r"[\w.+-]{1,64}")


@dataclass(frozen=True)
class PromptFile:
    """A file on the worker: `.parquet`, `.csv`, and anything else as JSON lines."""

    reference: str


@dataclass(frozen=True)
class UploadedPrompts:
    """Prompts that were uploaded to this installation, see engine/uploaded_prompts.py."""

    sha256: str


@dataclass(frozen=True)
class HubDataset:
    """One split of a data set on the hub, or in this machine's cache of it."""

    repository: str
    revision: str | None = None
    """Branch, tag or commit; None is the main branch."""
    split: str = "train"
    subset: str | None = None
    """The configuration of a data set that has several."""

    def at(self, revision: str) -> str:
        """The reference that means this split at that revision for ever."""
        subset = f"&subset={self.subset}" if self.subset else ""
        return f"hf:{self.repository}@{revision}?split={self.split}{subset}"


@dataclass(frozen=True)
class GymTasks:
    """Tasks of reasoning-gym: the same name, size, seed and settings make the same tasks."""

    task: str
    size: int = 1000
    seed: int = 0
    settings: tuple[tuple[str, int | bool], ...] = ()
    """How hard they are, by the task's own names, such as max_digits; sorted."""


@dataclass(frozen=True)
class ReadyTask:
    """One of the evaluation tasks that come with Incipit, see engine/task_spec.py."""

    name: str
    folder: str | None = None
    """A local copy of its data set, as the hub lays it out or just its file; None takes the hub or this machine's cache."""
    revision: str | None = None
    """Of the data set on the hub."""

    def __str__(self) -> str:
        options = {"folder": self.folder, "revision": self.revision}
        query = "&".join(f"{key}={quote(value, safe='/')}" for key, value in options.items() if value is not None)
        return f"task:{self.name}" + (f"?{query}" if query else "")


def ready_tasks() -> list[str]:
    """Names of the ready tasks."""
    return sorted(path.stem for path in Path(resolve("builtin:tasks")).glob("*.json"))


def parsed_reference(reference: str) -> PromptFile | UploadedPrompts | HubDataset | GymTasks | ReadyTask:
    """What `reference` stands for; ValueError with the second half of a sentence when it cannot be understood.

    `hf:org/name@revision?split=test&subset=main`, `reasoning_gym:chain_sum?size=500&seed=1` and
    `task:math500?folder=data/math500`, all behind the name optional; `upload:` and a sha256; everything else is a path. All other
    options of reasoning_gym are the task's own settings: `reasoning_gym:chain_sum?max_terms=2&max_digits=1`.
    """
    scheme, _, rest = reference.partition(":")
    if scheme == SCHEME:
        if not is_sha256(rest):
            raise ValueError(f"{rest[:80]!r} is no sha256; take the reference from the list of uploads.")
        return UploadedPrompts(rest)
    if scheme not in ("hf", "reasoning_gym", "task"):
        return PromptFile(reference)
    name, _, query = rest.partition("?")
    if scheme == "task":
        return _task(name, query)
    options = _options(query, ("split", "subset") if scheme == "hf" else None)
    if scheme == "hf":
        found = _REPOSITORY.fullmatch(name)
        if not found or ".." in name:
            raise ValueError(
                f"{name!r} is no data set's name; write hf:organisation/name or hf:organisation/name@revision."
            )
        split = _option(options, "split", _word, "train")
        subset = _option(options, "subset", _word, None)
        return HubDataset(found["name"], found["revision"], split, subset)
    if not _TASK.fullmatch(name):
        raise ValueError(f"{name!r} is no task's name; write one such as reasoning_gym:chain_sum?size=500&seed=1.")
    size = _option(options, "size", lambda text: _whole(text, 1, _MAX_GENERATED), 1000)
    seed = _option(options, "seed", lambda text: _whole(text, 0, _MAX_SEED), 0)
    return GymTasks(name, size, seed, tuple(_settings(options)))


def _settings(options: dict[str, str]) -> Iterator[tuple[str, int | bool]]:
    for name in sorted(options.keys() - {"size", "seed"}):
        if not _TASK.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is no setting's name; write one such as max_digits=2.")
        yield name, _option(options, name, _setting, 0)


def _task(name: str, query: str) -> ReadyTask:
    options = _options(query, ("folder", "revision"))
    if name not in ready_tasks():
        raise ValueError(f"there is no task {name[:64]!r}; the tasks are {', '.join(ready_tasks())}.")
    if options.get("folder") == "":
        raise ValueError("its folder is empty; name one or leave it out.")
    return ReadyTask(name, options.get("folder"), _option(options, "revision", _revision, None))


def _revision(text: str) -> str:
    if not re.fullmatch(r"[\w./-]{1,128}", text) or ".." in text:
        raise ValueError("and must be a branch, a tag or a commit; correct it.")
    return text


def _options(query: str, known: tuple[str, str] | None) -> dict[str, str]:
    """By name; None knows all."""
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    strange = [name for name in options if known is not None and name not in known]
    if known is not None and strange:
        raise ValueError(f"{strange[0]!r} is no option of it; the options are {known[0]} and {known[1]}.")
    if len(options) != len(pairs):
        raise ValueError("an option is given twice; name each once.")
    return options


def _option(options: dict[str, str], name: str, read: Callable[[str], T], default: T) -> T:
    if name not in options:
        return default
    try:
        return read(options[name])
    except ValueError as error:
        raise ValueError(f"{name} is {options[name]!r} {error}") from None


def _whole(text: str, least: int, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) <= most:
        raise ValueError(f"and must be a whole number from {least} to {most}; correct it.")
    return int(text)


def _setting(text: str) -> int | bool:
    if text in ("true", "false"):
        return text == "true"
    if not re.fullmatch(r"-?[0-9]{1,5}", text) or abs(int(text)) > _MAX_SETTING:
        raise ValueError(
            f"and must be true, false or a whole number from -{_MAX_SETTING} to {_MAX_SETTING}; correct it."
        )
    return int(text)


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise ValueError("and must be a plain word; correct it.")
    return text
