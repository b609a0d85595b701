"""The process that reads a file of prompts which somebody sent: one JSON request on stdin, one JSON reply on stdout.

The file is hostile input: it may unpack to any size, nest without end or crash the library that reads it. So this process has
limits on memory, time and what it writes, and what it leaves behind is a file that counts only when the reply says so.
"""

import hashlib
import json
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from engine.conversations import parsed_conversation
from engine.prompt_files import FileRow, MissingColumn, UnreadableFile, file_rows
from engine.prompt_map import PromptMap

MEMORY_BYTES = 3 * 2**30
CPU_SECONDS = 300
_NUM_SHOWN = 5  # rows that a person looks at before anything runs
_MAX_SHOWN = 2000  # characters of a text in them
_MAX_COLUMNS = 100
_MAX_PROBLEMS = 20
_LOOKED_AT = 200  # JSON lines whose keys are the columns


@dataclass(frozen=True)
class IntakeRequest:
    """What is to be read."""

    source: str
    """The file; its suffix says the format."""
    max_rows: int
    max_bytes: int
    """Of what is written."""
    map: dict[str, str] | None = None
    """Fields of a PromptMap; None only looks at the file."""
    target: str = ""
    """Where the prompts are written as JSON lines."""


@dataclass(frozen=True)
class Intake:
    """What was found in a file."""

    columns: list[str] = field(default_factory=list)
    num_rows: int = 0
    first: list[dict[str, str]] = field(default_factory=list)
    """The first rows: as they are when the file was looked at, else as they were written."""
    sha256: str = ""
    """Of what was written."""
    num_bytes: int = 0
    system_message: str | None = None
    """What every conversation begins with."""
    problems: list[str] = field(default_factory=list)
    """One sentence each, with the line; the first few. When there is one, nothing that was written counts."""


class _Refused(Exception):
    """The file as a whole cannot be taken; the text is a sentence."""


def taken_in(request: IntakeRequest) -> Intake:
    """Look at a file, or write its prompts; what stands in the way is among the problems, never raised."""
    path = Path(request.source)
    columns: list[str] = []
    try:
        columns = _columns(path)
        if request.map is None:
            return Intake(
                columns, first=[_shown(row.values or {}) for row in _rows_looked_at(path, columns, _NUM_SHOWN)]
            )
        return _Writer(request, PromptMap.model_validate(request.map), columns).written()
    except MissingColumn as error:
        return Intake(columns, problems=[_no_column("The file has", error.column, columns)])
    except UnreadableFile as error:
        return Intake(columns, problems=[f"The file {error}."])
    except _Refused as error:
        return Intake(columns, problems=[str(error)])


def _columns(path: Path) -> list[str]:
    """What the columns are called; of JSON lines the keys of the first lines."""
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            names = list(pyarrow.parquet.read_schema(path).names)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError):
            # The reader of rows says what is wrong with it, in its own words.
            next(file_rows(path, [], []), None)
            raise
        return names[:_MAX_COLUMNS]
    if path.suffix != ".csv":
        _refuse_lists(path)
    found = (row.values for row in _rows_looked_at(path, [], _LOOKED_AT))
    return list(dict.fromkeys(str(name) for values in found for name in values or ()))[:_MAX_COLUMNS]


def _refuse_lists(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(4096).lstrip().startswith(b"["):
            raise _Refused("The file is one JSON list; write one object on each line instead (JSON lines).")


def _rows_looked_at(path: Path, columns: Sequence[str], count: int) -> list[FileRow]:
    rows = file_rows(path, columns, [])
    return [row for row, _ in zip(rows, range(count), strict=False) if row.values is not None]


def _shown(values: Mapping[str, Any]) -> dict[str, str]:
    """A row for people: every value as short text that can be stored and sent."""
    texts = {str(name): value if isinstance(value, str) else repr(value) for name, value in values.items()}
    short = {name: text[:_MAX_SHOWN] + ("…" if len(text) > _MAX_SHOWN else "") for name, text in texts.items()}
    return {
        name[:128]: text.replace("\x00", "\u2400").encode("utf-8", "replace").decode()
        for name, text in list(short.items())[:_MAX_COLUMNS]
    }


def _no_column(whose: str, column: str, present: Sequence[str]) -> str:
    names = ", ".join(f'"{name}"' for name in present[:12]) + (", …" if len(present) > 12 else "")
    return f'{whose} no column "{column}"; found {names or "none"}; choose one of them.'


class _Writer:
    """Writes the prompts of a file as JSON lines and notes what is wrong with its rows."""

    def __init__(self, request: IntakeRequest, chosen: PromptMap, columns: Sequence[str]) -> None:
        self._request = request
        self._chosen = chosen
        self._columns = columns
        self._problems: list[str] = []
        self._places: dict[str, str] = {}
        self._first_talk: tuple[str, str | None] | None = None  # its place, and its system message
        self._sha256 = hashlib.sha256()
        self._num_rows = self._num_bytes = 0
        self._first: list[dict[str, str]] = []

    def written(self) -> Intake:
        named = list(self._chosen.columns.values())
        descriptor = os.open(self._request.target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for row in file_rows(Path(self._request.source), named, named):
                if self._num_rows >= self._request.max_rows:
                    raise _Refused(
                        f"The file has more than {self._request.max_rows} rows, which is the limit; split it."
                    )
                self._num_rows += 1
                self._take(row, file)
                if len(self._problems) >= _MAX_PROBLEMS:
                    break
            file.flush()
            os.fsync(file.fileno())
        if not self._num_rows:
            raise _Refused("The file has no rows; give it at least one prompt.")
        return Intake(
            columns=list(self._columns),
            num_rows=self._num_rows,
            first=self._first,
            sha256=self._sha256.hexdigest(),
            num_bytes=self._num_bytes,
            system_message=self._first_talk[1] if self._first_talk else None,
            problems=self._problems,
        )

    def _take(self, row: FileRow, file: BinaryIO) -> None:
        place = row.place
        if row.values is None:
            self._problems.append(f"{place} {row.problem}")
            return
        try:
            prompt = self._prompt(row.values, place)
            line = json.dumps(prompt, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:
            self._problems.append(f"{place}: half a character (a lone surrogate) stands in its text; correct it.")
            return
        except ValueError as error:
            self._problems.append(f"{place}: {error}.")
            return
        self._num_bytes += len(line)
        if self._num_bytes > self._request.max_bytes:
            limit = f"{self._request.max_bytes} bytes, which is the limit"
            raise _Refused(f"The prompts of the file have more than {limit}; split it.")
        self._sha256.update(line)
        file.write(line)
        if len(self._first) < _NUM_SHOWN:
            self._first.append(_shown(prompt))

    def _prompt(self, values: Mapping[str, Any], place: str) -> dict[str, str]:
        """What is stored of a row; ValueError with what is wrong with it."""
        found: dict[str, str] = {}
        for what, column in self._chosen.columns.items():
            if column not in values:
                names = ", ".join(f'"{name}"' for name in list(values)[:12])
                raise ValueError(
                    f'column "{column}" is missing; found {names or "none"}; choose the {what} column among them'
                )
            if what == "messages":
                found |= self._conversation(values[column], column, place)
            else:
                found[what] = _text(values[column], column, is_text=what in ("prompt", "completion"))
        if any("\x00" in text for text in found.values()):
            raise ValueError("the character NUL stands in its text; remove it")
        if "id" in found and (earlier := self._places.setdefault(found["id"], place)) != place:
            raise ValueError(f"the id {found['id'][:80]!r} is also that of {earlier}; give each row its own")
        return found

    def _conversation(self, value: object, column: str, place: str) -> dict[str, str]:
        try:
            talk = parsed_conversation(value)
        except ValueError as error:
            raise ValueError(f'column "{column}" {error}') from None
        self._first_talk = self._first_talk or (place, talk.system)
        if talk.system != self._first_talk[1]:
            raise ValueError(
                f"its system message differs from that of {self._first_talk[0]}; a run has one for all prompts, see prompts.system_message"
            )
        return {"prompt": talk.prompt} | ({} if talk.completion is None else {"completion": talk.completion})


def _text(value: object, column: str, *, is_text: bool) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and not is_text:
        return str(value)  # tables of numbers have numbers for answers and ids
    if not isinstance(value, str) or not value.strip():
        held = (
            "is empty"
            if value is None or value == "" or isinstance(value, str)
            else f"holds {type(value).__name__}, not text"
        )
        raise ValueError(f'column "{column}" {held}; fill it in or remove the row')
    return value


def main() -> None:
    """Answer the request with an Intake, within limits."""
    request = IntakeRequest(**json.load(sys.stdin.buffer))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    room = request.max_bytes + 2**20
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        reply = taken_in(request)
    except MemoryError:
        reply = Intake(problems=["The file needs more memory than reading prompts may take; split it."])
    json.dump(asdict(reply), sys.stdout)


if __name__ == "__main__":
    main()
