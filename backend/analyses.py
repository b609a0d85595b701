"""An analysis as the API tells of it."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from engine.analysis_spec import AnalysisResult, AnalysisSpec
from engine.findings import Finding
from engine.frozen import Frozen

ListedId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
AnalysisState = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class AnalysisCreate(AnalysisSpec):
    """An analysis that is asked for."""

    run_id: ListedId | None = None
    """The run that has this spec: the analysis belongs to its project; empty leaves it to the project of who asks."""


class Analysis(Frozen):
    """A question about a pair of models that a worker answers without training."""

    id: str
    created_at: datetime
    spec: AnalysisSpec
    state: AnalysisState
    done: float
    """Share of the work that is done, 0 to 1."""
    detail: str
    """What the worker is doing."""
    eta_seconds: float | None
    """Seconds that are left at the present pace; None while nothing is known."""
    findings: list[Finding]
    """Why it failed, at the fields of the run's spec."""
    result: AnalysisResult | None
    started_at: datetime | None
    finished_at: datetime | None
