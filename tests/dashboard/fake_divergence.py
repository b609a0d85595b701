"""Believable figures of traced rollouts taken together, made by the API's own code from made-up profiles. Never shipped."""

import math

import fake_records as records
import fake_traces as traces
from fastapi import APIRouter

from backend.divergence import DivergenceGrid, DivergentToken, DivergentTokens, GridRow, PositionQuantiles, PrefixAid
from backend.prefix_aid import AidProfile, prefix_aid_of
from engine.trace_profile import TraceMetric, TraceProfile, trace_profile

router = APIRouter(prefix="/api/v1/runs/{run_id}")
_WIDTH = 4


def _profile(run_id: str, step: int) -> TraceProfile:
    return trace_profile([traces.rollout(run_id, step, row).trace for row in range(2)], records.FULL_LENGTH)


def _steps(run_id: str) -> list[int]:
    """A run that is at work is traced by a version without profiles."""
    return list(range(0, records.steps_done(run_id) + 1, 20)) if run_id == "r-p8" else []


@router.get("/divergence/grid")
def grid(run_id: str, metric: TraceMetric) -> DivergenceGrid:
    starts = list(range(0, records.FULL_LENGTH, _WIDTH))
    steps = _steps(run_id)
    rows = [
        GridRow(
            first_step=step, last_step=step, horizon=8,
            mean=[(0.2 + start / 200) * math.exp(-step / 40) if start < 200 else None for start in starts],
            n=[8 if start < 160 else 3 if start < 200 else 0 for start in starts],
        )
        for step in steps
    ]  # fmt: skip
    return DivergenceGrid(
        metric=metric, bin_tokens=_WIDTH, starts=starts, rows=rows, num_steps=len(steps), num_steps_read=len(steps)
    )


@router.get("/divergence/positions")
def positions(run_id: str, metric: TraceMetric, step: int) -> PositionQuantiles:
    profile = _profile(run_id, step)
    values = profile.values[metric]
    return PositionQuantiles(
        metric=metric, step=step, steps=_steps(run_id), subject="student", horizon=8, bin_tokens=1,
        starts=list(range(len(values.mean))), n=profile.rollouts, **values.model_dump(),
    )  # fmt: skip


@router.get("/divergence/tokens")
def tokens(run_id: str, step: int | None = None) -> DivergentTokens:
    said = [("=SUM(1)", 40, 0.31), (" the", 12, 0.2), ("\n", 7, 0.1), (traces.HOSTILE, 1, 0.05)]
    items = [
        DivergentToken(token_id=at, text=text, count=count, mean=share * 3, share=share)
        for at, (text, count, share) in enumerate(said)
    ]
    number = 1 if step is not None else len(_steps(run_id))
    return DivergentTokens(items=items, num_tokens=1520, num_steps=number, num_steps_read=number)


@router.get("/prefix-aid")
def aid(run_id: str, step: int) -> PrefixAid:
    if not _steps(run_id):
        return prefix_aid_of([])
    return prefix_aid_of(
        [AidProfile(one, "student" if one else "base", 8, _profile(run_id, one)) for one in sorted({0, step})]
    )
