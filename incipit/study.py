"""A study: one base spec and many choices, each trained once through API and worker, and the page that reports on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from backend.needs import Needs
from backend.schemas import ExperimentCreate, Variant
from engine.findings import findings_of
from engine.frozen import Frozen
from engine.spec import RunSpec

R = TypeVar("R", bound=Frozen)


class Choice(Frozen):
    """One choice of the method: a change of the base spec, where it comes from and what proves it."""

    group: str
    """What is chosen, such as `divergence`."""
    choice: str
    """Which, such as `skew KL`."""
    change: dict[str, Any]
    """Merged into the base spec; an object with a `kind` replaces what stood there."""
    source: str
    """The publication it is taken from, or `ours`."""
    cost: str
    """What it costs, in a sentence."""
    test: str
    """The test that proves it: `path::name`."""

    @property
    def name(self) -> str:
        """Name of its run."""
        return f"{self.group}: {self.choice}"


class StudyFile(Frozen):
    """A study as it stands in its file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    title: str
    question: str
    base: RunSpec
    """What all choices share."""
    needs: Needs = Needs()
    """What the workers of its runs must have."""
    choices: str
    """Folder, relative to the file, whose JSON files list the choices."""


class Study(Frozen):
    """A study with its choices."""

    file: StudyFile
    choices: list[Choice]

    @property
    def experiment(self) -> ExperimentCreate:
        """What is submitted: one run for each choice."""
        return ExperimentCreate(
            name=self.file.title,
            note=self.file.question,
            base=self.file.base,
            needs=self.file.needs,
            variants=[
                Variant(name=choice.name, changes=dict(dotted(choice.change)), note=choice.cost)
                for choice in self.choices
            ],
        )


def read_study(path: Path) -> Study:
    """The study in a file; ValueError with a sentence when it or one of its choices is wrong."""
    file = _record(path, StudyFile)
    choices: list[Choice] = []
    for listed in sorted((path.parent / file.choices).glob("*.json")):
        documents = read_document(listed)
        if not isinstance(documents, list):
            raise ValueError(f"{listed} is not a list of choices; write [{{…}}, …].")
        choices += [
            _validated(document, Choice, f"{listed} entry {i}") for i, document in enumerate(documents, start=1)
        ]
    if not choices:
        raise ValueError(f"{path} names the folder {file.choices!r}, which lists no choices; add a JSON file to it.")
    twice = {choice.name for choice in choices if sum(other.name == choice.name for other in choices) > 1}
    if twice:
        raise ValueError(f"{path} has choices of one name: {', '.join(sorted(twice))}; rename them.")
    return Study(file=file, choices=choices)


def dotted(change: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """A nested change as dotted fields; an object with a `kind` is a value of its own."""
    for key, value in change.items():
        if isinstance(value, dict) and "kind" not in value:
            yield from dotted(value, f"{above}{key}.")
        else:
            yield above + key, value


def read_document(path: Path) -> Any:
    """The JSON of a file; ValueError with a sentence when there is none."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); correct the path.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); correct it.") from None


def _record(path: Path, model: type[StudyFile]) -> StudyFile:
    return _validated(read_document(path), model, str(path))


def _validated(document: Any, model: type[R], where: str) -> R:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise ValueError(f"{where}: {findings_of(error, document)[0].message}") from None
