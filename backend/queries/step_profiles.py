"""What the traced rollouts of a run say together, from one row a step: no reader opens a trace file.

However many steps are traced, at most 240 rows of a few kB are read: four for each row of the largest map.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from backend.columns import storable
from backend.divergence import (
    MAX_POSITION_BINS,
    MAX_STEP_BINS,
    DivergenceGrid,
    DivergentToken,
    DivergentTokens,
    GridRow,
    PositionQuantiles,
    PrefixAid,
)
from backend.prefix_aid import AidProfile, prefix_aid_of
from backend.problems import Refusal
from backend.queries.metric_rows import upsert
from backend.records import StepProfile
from engine.events import TracesWritten
from engine.trace_profile import MAX_BINS, TraceMetric, TraceProfile, bin_width

_MOST_STEPS = 4 * MAX_STEP_BINS
_NAMED_STEPS = 6  # of those that are offered instead of a step that is not there


def write_profile(session: Session, run_id: str, fence: int, event: TracesWritten, profile: TraceProfile) -> None:
    """Write the row of a step, in place of the one that is there; the caller holds the run."""
    kinds = [[one.token_id, storable(one.text), one.count, one.reverse_kl] for one in profile.token_types]
    row = {"run_id": run_id, "step": event.step, "fence": fence, "subject": event.subject, "horizon": event.horizon,
           "num_tokens": profile.num_tokens, "reverse_kl": profile.reverse_kl, "grid": _grid_row(profile),
           "profile": profile.model_copy(update={"token_types": []}), "token_types": kinds}  # fmt: skip
    upsert(session, StepProfile, [row])


def divergence_grid(
    session: Session, run_id: str, metric: TraceMetric, *, position_bins: int, step_bins: int
) -> DivergenceGrid:
    """The mean of a quantity by position and step, in at most so many bins of each."""
    steps, read = _steps(session, run_id)
    rows = _columns(session, run_id, steps, read, StepProfile.step, StepProfile.horizon, StepProfile.grid)
    if not rows:
        return DivergenceGrid(metric=metric, bin_tokens=0, starts=[], rows=[], num_steps=0, num_steps_read=0)
    num_bins = max(len(grid["tokens"]) for _, _, grid in rows)
    merged = -(-num_bins // position_bins)
    width, together = rows[0][2]["bin_tokens"] * merged, -(-len(rows) // step_bins)
    num_cells = -(-num_bins // merged)
    groups = [rows[at : at + together] for at in range(0, len(rows), together)]
    return DivergenceGrid(
        metric=metric,
        bin_tokens=width,
        starts=[width * at for at in range(num_cells)],
        rows=[_row_of(group, metric, merged, num_cells) for group in groups],
        num_steps=len(steps),
        num_steps_read=len(rows),
    )


def position_quantiles(session: Session, run_id: str, metric: TraceMetric, *, step: int | None) -> PositionQuantiles:
    """Mean and quantiles by position at a step, at the newest traced one if none is named. Refuses one without traces."""
    steps, _ = _steps(session, run_id)
    chosen = _chosen(run_id, steps, step)
    if chosen is None:
        return PositionQuantiles(
            metric=metric, step=None, steps=[], subject=None, horizon=0, bin_tokens=0, starts=[], mean=[], p10=[],
            p50=[], p90=[], n=[],
        )  # fmt: skip
    row = session.get_one(StepProfile, (run_id, chosen))
    values, width = row.profile.values[metric], bin_width(row.profile.length, MAX_BINS)
    return PositionQuantiles(
        metric=metric,
        step=chosen,
        steps=steps,
        subject=row.subject,
        horizon=row.horizon,
        bin_tokens=width,
        starts=[width * at for at in range(len(values.mean))],
        n=row.profile.rollouts,
        **values.model_dump(),
    )


def divergent_tokens(session: Session, run_id: str, *, step: int | None, limit: int) -> DivergentTokens:
    """The token types with the largest sums of reverse KL. Refuses a step without traces."""
    steps, read = _steps(session, run_id)
    if step is not None:
        _chosen(run_id, steps, step)
        steps = read = [step]
    rows = _columns(
        session, run_id, steps, read, StepProfile.num_tokens, StepProfile.reverse_kl, StepProfile.token_types
    )
    found: dict[int, list[Any]] = {}
    for _, _, kinds in rows:
        for token_id, text, count, total in kinds:
            one = found.setdefault(token_id, [text, 0, 0.0])
            one[1] += count
            one[2] += total
    whole = sum(total for _, total, _ in rows)
    strongest = sorted(found.items(), key=lambda one: (-one[1][2], one[0]))[:limit]
    items = [
        DivergentToken(
            token_id=token_id, text=text, count=count, mean=total / count, share=total / whole if whole > 0 else 0.0
        )
        for token_id, (text, count, total) in strongest
    ]
    num_tokens = sum(num_tokens for num_tokens, _, _ in rows)
    return DivergentTokens(items=items, num_tokens=num_tokens, num_steps=len(steps), num_steps_read=len(rows))


def prefix_aid(session: Session, run_id: str, *, step: int | None) -> PrefixAid:
    """The figures of the first traced step and of another one, the newest if none is named."""
    steps, _ = _steps(session, run_id)
    chosen = _chosen(run_id, steps, step)
    wanted = sorted({steps[0], chosen}) if chosen is not None else []
    rows = [session.get_one(StepProfile, (run_id, one)) for one in wanted]
    return prefix_aid_of([AidProfile(row.step, row.subject, row.horizon, row.profile) for row in rows])  # type: ignore[arg-type]


def _grid_row(profile: TraceProfile) -> dict[str, Any]:
    width = bin_width(profile.length, MAX_BINS)
    merged = -(-bin_width(profile.length, MAX_POSITION_BINS) // width)
    cells = range(0, len(profile.tokens), merged)
    return {
        "bin_tokens": width * merged,
        "rollouts": [profile.rollouts[at] for at in cells],
        "tokens": [sum(profile.tokens[at : at + merged]) for at in cells],
        "mean": {
            metric: [
                float(f"{_mean(values.mean[at : at + merged], profile.tokens[at : at + merged]):.6g}") for at in cells
            ]
            for metric, values in profile.values.items()
        },
    }


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _steps(session: Session, run_id: str) -> tuple[list[int], list[int]]:
    """All traced steps, and those of them that a reader of the whole run takes: the last one is always among them."""
    query = select(StepProfile.step).where(StepProfile.run_id == run_id).order_by(StepProfile.step)
    steps = list(session.scalars(query))
    stride = max(1, -(-len(steps) // _MOST_STEPS))
    return steps, steps[::-1][::stride][::-1]


def _columns(
    session: Session, run_id: str, steps: Sequence[int], read: Sequence[int], *columns: InstrumentedAttribute[Any]
) -> list[tuple[Any, ...]]:
    query = select(*columns).where(StepProfile.run_id == run_id).order_by(StepProfile.step)
    if len(read) < len(steps) or len(steps) == 1:
        query = query.where(StepProfile.step.in_(read))
    return [tuple(row) for row in session.execute(query)]


def _chosen(run_id: str, steps: Sequence[int], step: int | None) -> int | None:
    if step is None:
        return steps[-1] if steps else None
    if step not in steps:
        spread = sorted({*steps[:: max(1, len(steps) // _NAMED_STEPS)], *steps[-1:]})
        known = f"it has them at {', '.join(map(str, spread))}" if steps else "it has none at all"
        raise Refusal(404, f"Run {run_id!r} has no token traces at step {step}; {known}.")
    return step


def _row_of(group: Sequence[tuple[Any, ...]], metric: TraceMetric, merged: int, num_cells: int) -> GridRow:
    sums, tokens, reaching = [0.0] * num_cells, [0] * num_cells, [0] * num_cells
    for _, _, grid in group:
        for at, (mean, count, rollouts) in enumerate(
            zip(grid["mean"][metric], grid["tokens"], grid["rollouts"], strict=True)
        ):
            cell = at // merged
            sums[cell] += mean * count
            tokens[cell] += count
            reaching[cell] += rollouts if at % merged == 0 else 0
    means = [total / count if count else None for total, count in zip(sums, tokens, strict=True)]
    return GridRow(first_step=group[0][0], last_step=group[-1][0], horizon=group[-1][1], mean=means, n=reaching)
