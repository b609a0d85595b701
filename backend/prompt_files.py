"""Uploaded files of prompts, as the API tells of them. The dashboard and the command line read these too."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from engine.frozen import Frozen
from engine.prompt_map import PromptMap

FileName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f/\\]+$")]
SUFFIXES = {".jsonl": ".jsonl", ".ndjson": ".jsonl", ".json": ".jsonl", ".csv": ".csv", ".parquet": ".parquet"}
"""By the end of a file's name, the format that it is read as."""


class NamedFile(Frozen):
    """What a file that is sent is called."""

    name: FileName
    """Its name; it ends with .jsonl, .csv or .parquet, which says how it is read."""


class PromptUpload(PromptMap, NamedFile):
    """What a file that is sent is called, and which of its columns are what."""


class PromptLook(Frozen):
    """What is in a file that somebody may upload; nothing of it is stored."""

    columns: list[str]
    first: list[dict[str, str]]
    """The first few rows, long texts cut off."""
    guess: dict[str, str]
    """What its columns may be, by their names: fields of the upload."""


class PromptFile(Frozen):
    """Prompts that were uploaded. They never change: the same content has the same reference everywhere."""

    id: str
    name: str
    reference: str
    """What prompts.path, evaluation.path or evaluation.report_path of a spec say to read it."""
    sha256: str
    num_rows: int
    num_bytes: int
    map: PromptMap
    """Which of the file's columns became what; they are called prompt, answer, completion and id since."""
    system_message: str | None
    """What all its conversations began with; prompts.system_message of a spec can say the same."""
    first: list[dict[str, str]]
    """The first few prompts, long texts cut off."""
    num_runs: int
    """Runs that read it; it can be deleted when there is none."""
    created_at: datetime
    created_by: str
