"""Exports of checkpoints as the API takes and tells them."""

from datetime import datetime

from backend.analyses import AnalysisState, ListedId
from engine.export_spec import ExportChoice, ExportResult, ExportSpec
from engine.findings import Finding
from engine.frozen import Frozen

EXPORT = "export"
"""Kind of the rows of analyses that are exports."""


class ExportCreate(Frozen):
    """A checkpoint that a worker is to make something of."""

    checkpoint_id: ListedId
    """As the list of checkpoints gives it."""
    export: ExportChoice
    """What is made: `merged`, a plain Hugging Face folder; `gguf`, a file for llama.cpp; `hub`, a repository of the hub."""


class QueuedExport(Frozen):
    """An export as it was asked for, and what it means to a worker."""

    asked: ExportCreate
    spec: ExportSpec
    run_id: str


class Export(Frozen):
    """An export: how far it is, and what it made."""

    id: str
    created_at: datetime
    created_by: str
    checkpoint_id: str
    run_id: str
    run_name: str
    step: int
    export: ExportChoice
    state: AnalysisState
    queue_position: int | None
    """1 is the next; None unless it is queued."""
    done: float
    """Share of the bytes that are read, written and sent, 0 to 1."""
    detail: str
    """What the worker is doing, with bytes."""
    eta_seconds: float | None
    """Seconds that are left at the present pace; None while nothing is known."""
    findings: list[Finding]
    """Why it failed, at the fields of the request."""
    result: ExportResult | None
    """Its files with size and sha256, the repository of an export to the hub."""
    removed_at: datetime | None
    """When its files were let go; None while they can be fetched, and of an export that has none here."""
    started_at: datetime | None
    finished_at: datetime | None
