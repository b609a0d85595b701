"""Rows of prompt files as they stand there: JSON lines, CSV with a header, Parquet. Nothing here knows what a prompt is."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

MAX_ROW_BYTES = 4_000_000  # a longer row is a mistake (a file without newlines), not a prompt
MAX_FILE_BYTES = 8_000_000_000  # rows are kept in memory
_PARQUET_BATCH = 256  # rows


class UnreadableFile(ValueError):
    """A file as a whole cannot be read; the text goes on behind "which"."""


class MissingColumn(UnreadableFile):
    """A table lacks a column that is needed."""

    def __init__(self, column: str, present: Sequence[str]) -> None:
        names = ", ".join(map(repr, present[:12])) + (", …" if len(present) > 12 else "")
        super().__init__(f"has no column {column!r} (it has {names or 'none'})")
        self.column = column


@dataclass(frozen=True)
class FileRow:
    """One row, or what is wrong with it."""

    place: str
    """Where it stands, such as `line 3` or `row 3`; rows of a table count from 1 behind the header."""
    values: Mapping[str, Any] | None
    problem: str = ""


def file_rows(path: Path, wanted: Sequence[str], needed: Sequence[str]) -> Iterator[FileRow]:
    """The rows of a file; the format follows from its suffix.

    A table must have the `needed` columns; of the others only those in `wanted` are read. Raises UnreadableFile,
    MissingColumn and OSError.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UnreadableFile(f"has {size} bytes, the limit is {MAX_FILE_BYTES}; split it")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path, wanted, needed)
    if suffix == ".csv":
        return _csv_rows(path, needed)
    return _json_lines(path)


def _json_lines(path: Path) -> Iterator[FileRow]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_ROW_BYTES + 1):
            number += 1
            place = f"line {number}"
            if len(line) > MAX_ROW_BYTES:
                yield FileRow(
                    place, None, f"is longer than the limit of {MAX_ROW_BYTES} bytes; put one object on each line."
                )
                return
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:  # of JSON, UTF-8, or a number of thousands of digits
                yield FileRow(place, None, f"is not JSON ({error}); write one object per line.")
                continue
            if isinstance(value, dict):
                yield FileRow(place, value)
            else:
                yield FileRow(place, None, 'is not an object; write {"prompt": …} on each line.')


def _csv_rows(path: Path, needed: Sequence[str]) -> Iterator[FileRow]:
    csv.field_size_limit(MAX_ROW_BYTES)  # for the process: the module has no other way
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(_bounded_lines(file), strict=True)
        number = 0
        try:
            header = next(reader, None)
            if header is None:
                return
            for column in needed:
                if column not in header:
                    raise MissingColumn(column, header)
            if len(set(header)) != len(header):
                twice = next(name for name in header if header.count(name) > 1)
                raise UnreadableFile(f"has two columns called {twice!r}; rename one")
            for cells in reader:
                if not cells:  # an empty line is no row
                    continue
                number += 1
                if len(cells) == len(header):
                    yield FileRow(f"row {number}", dict(zip(header, cells, strict=True)))
                else:
                    counts = f"has {len(cells)} values but the header has {len(header)}"
                    yield FileRow(f"row {number}", None, f"{counts}; correct it or quote its commas.")
        except (csv.Error, UnicodeDecodeError) as error:
            # What follows cannot be told apart any more.
            yield FileRow(f"row {number + 1}", None, f"is not CSV in UTF-8 ({error}); correct it.")


def _bounded_lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(MAX_ROW_BYTES + 1):
        if len(line) > MAX_ROW_BYTES:
            raise csv.Error(f"longer than the limit of {MAX_ROW_BYTES} characters")
        yield line


def _parquet_rows(path: Path, wanted: Sequence[str], needed: Sequence[str]) -> Iterator[FileRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            present = file.schema_arrow.names
            for column in needed:
                if column not in present:
                    raise MissingColumn(column, present)
            columns = [name for name in wanted if name in present]
            _check_uncompressed_size(file.metadata, columns)
            number = 0
            for batch in file.iter_batches(_PARQUET_BATCH, columns=columns, use_threads=False):
                for values in batch.to_pylist():
                    number += 1
                    yield FileRow(f"row {number}", values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UnreadableFile(f"is no sound Parquet file ({reason}); write it again") from None


def _check_uncompressed_size(metadata: Any, columns: Sequence[str]) -> None:
    """A small file may unpack to a size that no memory holds."""
    chunks = (
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    )
    total = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in columns)
    if total > MAX_FILE_BYTES:
        raise UnreadableFile(f"unpacks to {total} bytes, the limit is {MAX_FILE_BYTES}; split it")
