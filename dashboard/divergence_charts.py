"""Frames and charts of a run's traced rollouts taken together; positions are counted from 1, as people do."""

import altair as alt
import pandas as pd

from backend.divergence import DivergenceGrid, DivergentTokens, PositionQuantiles, PrefixAid
from dashboard.charts import Layers
from engine.trace_profile import TraceMetric

FEW = 5
"""Means over fewer rollouts are greyed: they say little."""
CELL = "cell"
_NEUTRAL = "#808593"  # 3.5:1 or more on both backgrounds
_MAP_HEIGHT = (180, 560)
METRICS: dict[TraceMetric, tuple[str, str]] = {
    "reverse_kl": ("Reverse KL", "nats"),
    "forward_kl": ("Forward KL", "nats"),
    "jsd": ("JSD", "nats"),
    "student_entropy": ("Student entropy", "nats"),
    "teacher_entropy": ("Teacher entropy", "nats"),
    "overlap_mass": ("Top-k overlap", "share"),
}
AID_TITLES = {
    "cumulative_share": "Share of the reverse KL so far",
    "reverse_kl": "Reverse KL (nats)",
    "teacher_entropy": "Teacher entropy (nats)",
    "overlap_mass": "Top-k overlap (share)",
}


def estimator(metric: TraceMetric) -> str:
    """Over what a quantity is taken, for the legend."""
    if metric == "overlap_mass":
        return "over the stored candidates, both models' top k: a lower bound"
    return "over the full vocabulary"


def grid_frame(grid: DivergenceGrid) -> pd.DataFrame:
    """One row per cell that a rollout reaches: steps, first_step, last_step, start, end, mean, n, horizon."""
    rows = [
        {
            "steps": f"{row.first_step}" if row.first_step == row.last_step else f"{row.first_step}–{row.last_step}",
            "first_step": row.first_step,
            "last_step": row.last_step,
            "start": start + 1,
            "end": start + grid.bin_tokens,
            "mean": mean,
            "n": n,
            "horizon": row.horizon,
        }
        for row in grid.rows
        for start, mean, n in zip(grid.starts, row.mean, row.n, strict=True)
        if mean is not None
    ]
    columns = ["steps", "first_step", "last_step", "start", "end", "mean", "n", "horizon"]
    return pd.DataFrame(rows, columns=columns)


def grid_chart(frame: pd.DataFrame, metric: TraceMetric) -> Layers:
    """The map of position and step; a click chooses a cell (`cell`: start, last_step). Frame: that of grid_frame."""
    title, unit = METRICS[metric]
    low, high = map_limits(frame, metric)
    # Divergence is heavy-tailed: on a plain scale one cell would be bright and all others dark (LMdiff takes 0.3 as well).
    power = 1.0 if metric == "overlap_mass" else 0.3
    scale = alt.Scale(scheme="cividis", type="pow", exponent=power, domain=[low, high], clamp=True)
    order = frame.drop_duplicates("steps").sort_values("last_step", ascending=False)["steps"].tolist()
    y = alt.Y("steps:O", sort=order, title="step", axis=alt.Axis(labelOverlap=True, grid=False))
    edges = alt.Scale(domain=[1, int(frame["end"].max()) + 1], nice=False, zero=False)
    cells = alt.Chart(frame).transform_calculate(behind="datum.end + 1")
    colour = alt.Color(
        "mean:Q", scale=scale, title=f"{title} ({unit})", legend=alt.Legend(orient="top", gradientLength=220)
    )
    # Kept opaque whatever is chosen: the map stays readable when the reader comes back to it.
    picked = alt.selection_point(name=CELL, fields=["start", "last_step"], on="click", empty=False)
    rectangles = (
        cells.mark_rect(cursor="pointer")
        .encode(
            x=alt.X(
                "start:Q", scale=edges, title="completion position (token)", axis=alt.Axis(tickMinStep=1, grid=False)
            ),
            x2="behind:Q",
            y=y,
            color=alt.condition(f"datum.n < {FEW}", alt.value(_NEUTRAL), colour),
            tooltip=[
                "steps:N",
                alt.Tooltip("start:Q", title="from token"),
                alt.Tooltip("end:Q", title="to token"),
                alt.Tooltip("mean:Q", format=".4~g", title=f"mean ({unit})"),
                alt.Tooltip("n:Q", title="rollouts"),
            ],
        )
        .add_params(picked)
    )
    ends = frame.drop_duplicates("steps").assign(edge=lambda one: one["horizon"] + 1)
    ends = ends[ends["edge"] <= int(frame["end"].max())]
    layers: list[alt.Chart] = [rectangles]
    for share, shade in ((400, "#10131a"), (800, "#ffffff")) if not ends.empty else ():
        # White on a dark line, to be seen on both ends of the ramp.
        half = int(frame["end"].max()) / share
        drawn = ends.assign(left=ends["edge"] - half, right=ends["edge"] + half)
        edge = alt.Chart(drawn).mark_rect(color=shade).encode(x=alt.X("left:Q", scale=edges), x2="right:Q", y=y)
        layers.append(edge.encode(tooltip=["steps:N", alt.Tooltip("horizon:Q", title="prefix (tokens)")]))
    least, most = _MAP_HEIGHT
    return alt.layer(*layers).properties(height=max(least, min(most, 26 * len(order) + 60)))


def map_limits(frame: pd.DataFrame, metric: TraceMetric) -> tuple[float, float]:
    """Ends of the map's colour scale: 0, or the least overlap, and the 99th percentile of the cells with enough rollouts."""
    known = frame[frame["n"] >= FEW]["mean"]
    if metric == "overlap_mass":
        return (float(known.min()) if len(known) and known.min() < 1 else 0.0), 1.0
    return 0.0, max(float(known.quantile(0.99)), 1e-6) if len(known) else 1.0


def quantiles_frame(found: PositionQuantiles) -> pd.DataFrame:
    """One row per bin: start, end, mean, p10, p50, p90, n."""
    return pd.DataFrame(
        {
            "start": [start + 1 for start in found.starts],
            "end": [start + found.bin_tokens for start in found.starts],
            "mean": found.mean,
            "p10": found.p10,
            "p50": found.p50,
            "p90": found.p90,
            "n": found.n,
        }
    )


def quantiles_chart(frame: pd.DataFrame, metric: TraceMetric, horizon: int) -> Layers:
    """Median and mean by position in the band of 80 % of the tokens; the horizon dashed. Frame: that of quantiles_frame."""
    title, unit = METRICS[metric]
    scale = alt.Scale(zero=True) if metric == "overlap_mass" else alt.Scale(type="sqrt")
    x = alt.X("start:Q", title="completion position (token)", axis=alt.Axis(tickMinStep=1))
    y_title = f"{title} ({unit})"
    base = alt.Chart(frame).encode(x=x)
    band = base.mark_area(opacity=0.2).encode(y=alt.Y("p10:Q", title=y_title, scale=scale), y2="p90:Q")
    lines = (
        base.transform_calculate(median="datum.p50")
        .transform_fold(["median", "mean"], as_=["line", "value"])
        .mark_line(strokeWidth=1.75)
        .encode(
            y=alt.Y("value:Q", title=y_title, scale=scale),
            color=alt.Color("line:N", title=None, sort=None, legend=alt.Legend(orient="bottom")),
        )
    )
    catching = base.mark_point(opacity=0, size=60).encode(
        y=alt.Y("mean:Q", title=y_title, scale=scale),
        tooltip=["start:Q", "end:Q", *(alt.Tooltip(f"{one}:Q", format=".4~g") for one in ("p10", "p50", "mean", "p90")),
                 alt.Tooltip("n:Q", title="rollouts")],
    )  # fmt: skip
    return alt.layer(band, lines, catching, *_prefix_line(horizon, frame)).properties(height=260)


def tokens_frame(found: DivergentTokens) -> pd.DataFrame:
    """One row per token type: token, id, count, mean, share."""
    return pd.DataFrame(
        {
            "token": [shown_token(one.text) for one in found.items],
            "id": [one.token_id for one in found.items],
            "count": [one.count for one in found.items],
            "mean": [one.mean for one in found.items],
            "share": [one.share for one in found.items],
        }
    )


def shown_token(text: str) -> str:
    """A token with its blanks and line ends made visible."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·") or "(empty)"


def aid_frame(aid: PrefixAid) -> pd.DataFrame:
    """One row per step and bin: series, start, end, n, cumulative_share, reverse_kl, teacher_entropy, overlap_mass."""
    parts = [
        pd.DataFrame(
            {
                "series": f"step {curve.step}, {'untrained student' if curve.subject == 'base' else curve.subject}",
                "start": [start + 1 for start in aid.starts[: len(curve.n)]],
                "end": [start + aid.bin_tokens for start in aid.starts[: len(curve.n)]],
                "n": curve.n,
                **{field: getattr(curve, field) for field in AID_TITLES},
            }
        )
        for curve in aid.curves
    ]
    return pd.concat(parts)


def aid_chart(frame: pd.DataFrame, field: str, horizon: int, weak_from: int | None) -> Layers:
    """One figure of the aid by position, with the prefix as a line and the weak signal shaded. Frame: that of aid_frame."""
    is_share = field in ("cumulative_share", "overlap_mass")
    lowest = 0.0 if field == "cumulative_share" else min(0.9, float(frame[field].min()))
    scale = alt.Scale(domain=[lowest, 1]) if is_share else alt.Scale(type="pow", exponent=0.3)
    axis = alt.Axis(
        format="%" if is_share else "~g", tickCount=4, minExtent=44
    )  # one extent: the figures stand under each other
    legend = alt.Legend(orient="bottom", labelLimit=320) if field == "cumulative_share" else None
    y = alt.Y(f"{field}:Q", title=None, scale=scale, axis=axis)
    base = alt.Chart(frame).encode(
        x=alt.X("start:Q", title="completion position (token)", axis=alt.Axis(tickMinStep=1)),
        y=y,
        color=alt.Color("series:N", title=None, sort=None, legend=legend),
    )
    tooltip = [
        "series:N",
        "start:Q",
        "end:Q",
        alt.Tooltip(f"{field}:Q", format=".4~g"),
        alt.Tooltip("n:Q", title="rollouts"),
    ]
    layers: list[alt.Chart] = [
        base.mark_line(strokeWidth=1.75),
        base.mark_point(opacity=0, size=60).encode(tooltip=tooltip),
    ]
    if weak_from is not None:
        weak = pd.DataFrame({"start": [weak_from + 1], "end": [int(frame["end"].max())]})
        layers.insert(0, alt.Chart(weak).mark_rect(opacity=0.12, color=_NEUTRAL).encode(x="start:Q", x2="end:Q"))
    return alt.layer(*layers, *_prefix_line(horizon, frame)).properties(height=200 if legend is not None else 150)


def _prefix_line(horizon: int, frame: pd.DataFrame) -> list[alt.Chart]:
    """The dashed line where the prefix ends; nothing when it is no shorter than the longest rollout."""
    if horizon >= int(frame["end"].max()):
        return []
    ends = alt.Chart(pd.DataFrame({"horizon": [horizon + 0.5], "label": [f"L = {horizon}"]}))
    x = alt.X("horizon:Q", title="completion position (token)")
    rule = ends.mark_rule(strokeDash=[5, 4], color=_NEUTRAL, size=1.5).encode(x=x)
    text = ends.mark_text(align="left", dx=5, color=_NEUTRAL, baseline="top")
    return [rule, text.encode(x=x, y=alt.value(2), text="label:N")]
