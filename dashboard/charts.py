"""Charts as pure functions: data frame in, Altair chart out. Colours come from the theme, so that light and dark agree."""

from typing import Literal

import altair as alt
import pandas as pd

from dashboard.measures import Measure

Layers = alt.LayerChart | alt.FacetChart  # what alt.layer says that it returns
_HEIGHT = 260
_SMALL_HEIGHT = 150
_NEUTRAL = "#808593"  # reference lines and labels: 3.5:1 or more on both backgrounds
_FLOPS_AXIS = alt.Axis(format=".2~s", title="training FLOPs", tickCount=6)

XAxis = Literal["training_flops", "step", "training_seconds", "trained_tokens", "sampled_tokens"]
X_TITLES: dict[XAxis, str] = {
    "training_flops": "Training FLOPs",
    "step": "Steps",
    "training_seconds": "Training seconds",
    "trained_tokens": "Trained tokens",
    "sampled_tokens": "Sampled tokens",
}
_LOG_AXES: frozenset[XAxis] = frozenset({"training_flops", "trained_tokens", "sampled_tokens"})


def metric_line(frame: pd.DataFrame, title: str, *, log: bool = False) -> Layers:
    """A metric by step. Frame: step, value. The thin line is every point, the thick one their median of 9 steps."""
    scale = alt.Scale(type="log") if log else alt.Scale(zero=False)
    base = alt.Chart(frame).encode(x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, tickCount=6)))
    points = base.mark_line(opacity=0.35, strokeWidth=1).encode(
        y=alt.Y("value:Q", title=title, scale=scale), tooltip=["step:Q", alt.Tooltip("value:Q", format=".4~g")]
    )
    smooth = (
        base.transform_window(median="median(value)", frame=[-4, 4])
        .mark_line(strokeWidth=2)
        .encode(y=alt.Y("median:Q", title=title, scale=scale))
    )
    return alt.layer(points, smooth).properties(height=_SMALL_HEIGHT)


def tail_line(frame: pd.DataFrame, teacher: pd.DataFrame) -> Layers:
    """A figure of whole texts by step beside the teacher's own. Frame: step, value. Teacher: label, value (one row or none)."""
    base = alt.Chart(frame).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, tickCount=6)),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(domainMin=0)),
        tooltip=["step:Q", alt.Tooltip("value:Q", format=".4~g")],
    )
    layers: list[alt.Chart | Layers] = [base.mark_line(strokeWidth=2), base.mark_point(filled=True, size=30)]
    if not teacher.empty:  # an empty layer would take the axis away
        layers.insert(0, _reference_lines(teacher, "value"))
    return alt.layer(*layers).properties(height=_SMALL_HEIGHT)


def measure_chart(
    frame: pd.DataFrame,
    seeds: pd.DataFrame,
    front: pd.DataFrame,
    references: pd.DataFrame,
    x: XAxis,
    measure: Measure,
) -> Layers:
    """A figure of the student by what it cost, one line per run and one colour per arm.

    Frame: arm, run, step, the costs, value, is_best. Seeds: the same means per arm and step with
    low and high, drawn as a band, its runs paler; empty when each arm has one seed. Front: the rows of frame on the Pareto
    front. References: label, value. With FLOPs and tokens the axis is logarithmic, so points without training (step 0) stand at no
    place and are left out.
    """
    log = x in _LOG_AXES
    drawn, means, front = (one[one[x] > 0] if log else one for one in (frame, seeds, front))
    axis = alt.Axis(format="~s") if log else alt.Axis()
    x_channel = alt.X(
        f"{x}:Q",
        title=X_TITLES[x],
        axis=axis,
        scale=alt.Scale(type="log", nice=False, padding=12) if log else alt.Undefined,
    )
    scale = alt.Scale(domain=[0, 1]) if measure.is_share else alt.Scale(zero=False, nice=True)
    y_channel = alt.Y("value:Q", title=measure.name, scale=scale)
    colour = alt.Color(
        "arm:N",
        title=None,
        sort=None,
        legend=alt.Legend(
            orient="bottom", columns=3, labelLimit=320, symbolType="stroke", symbolStrokeWidth=3, symbolOpacity=1
        ),
    )
    tooltip = [
        "arm:N",
        "run:N",
        "step:Q",
        alt.Tooltip("value:Q", format=".3f", title=measure.name),
        alt.Tooltip("training_flops:Q", format=".3~s", title="training FLOPs"),
        alt.Tooltip("training_seconds:Q", format=".1f", title="training seconds"),
        alt.Tooltip("trained_tokens:Q", format=",.0f", title="trained tokens"),
        alt.Tooltip("sampled_tokens:Q", format=",.0f", title="sampled tokens"),
    ]
    base = alt.Chart(drawn).encode(x=x_channel, y=y_channel, color=colour, detail="run:N")
    layers: list[alt.Chart | Layers] = []
    if not references.empty:  # an empty layer would take the axis away
        layers.append(_reference_lines(references, "value"))
    if not front.empty:
        layers.append(
            alt.Chart(front)
            .mark_line(interpolate="step-after", strokeWidth=7, opacity=0.25, color=_NEUTRAL)
            .encode(x=x_channel, y=y_channel)
        )
    if not means.empty:
        mean = alt.Chart(means).encode(x=x_channel, color=colour)
        layers.append(mean.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", title=None), y2="high:Q"))
        layers.append(mean.mark_line(strokeWidth=2.5).encode(y=y_channel))
    return alt.layer(
        *layers,
        base.mark_line(strokeWidth=1.75, opacity=1.0 if means.empty else 0.35),
        base.mark_point(size=26, filled=True).encode(tooltip=tooltip),
        base.transform_filter("datum.is_best")
        .mark_point(shape="diamond", size=150, strokeWidth=2)
        .encode(tooltip=tooltip),
    ).properties(height=360)


def parallel_chart(frame: pd.DataFrame) -> Layers:
    """One line per run across the fields that differ and what came of them. Frame: run, arm, axis, order, at, label, is_named, accuracy."""
    axis = alt.X(
        "axis:N", sort=alt.SortField("order"), title=None, axis=alt.Axis(labelAngle=0, labelLimit=170, grid=True)
    )
    colour = alt.Color("arm:N", title=None, sort=None, legend=alt.Legend(orient="bottom", columns=3, labelLimit=320))
    place = alt.Y("at:Q", axis=None, scale=alt.Scale(domain=[-0.06, 1.16]))
    base = alt.Chart(frame).encode(x=axis, y=place)
    tooltip = ["run:N", "axis:N", alt.Tooltip("label:N", title="value"), alt.Tooltip("accuracy:Q", format=".3f")]
    lines = base.mark_line(strokeWidth=1.75).encode(color=colour, detail="run:N")
    points = base.mark_point(filled=True, size=45).encode(color=colour, tooltip=tooltip)
    ends = alt.Chart(frame[frame["is_named"]]).encode(x=axis, y=place)
    return alt.layer(
        lines, points, ends.mark_text(baseline="bottom", dy=-6, color=_NEUTRAL).encode(text="label:N")
    ).properties(height=240)


def _reference_lines(references: pd.DataFrame, field: str) -> Layers:
    base = alt.Chart(references).encode(y=f"{field}:Q")
    lines = base.mark_rule(strokeDash=[5, 4], color=_NEUTRAL)
    # Below the line, where the student's own curve seldom is; above it only near the bottom of the chart.
    below = base.transform_filter(f"datum.{field} >= 0.12").mark_text(
        baseline="top", dy=3, align="left", dx=4, color=_NEUTRAL
    )
    above = base.transform_filter(f"datum.{field} < 0.12").mark_text(
        baseline="bottom", dy=-3, align="left", dx=4, color=_NEUTRAL
    )
    labels = [one.encode(x=alt.value(0), text="label:N") for one in (below, above)]
    return alt.layer(lines, *labels)


def progress_chart(frame: pd.DataFrame, references: pd.DataFrame) -> Layers:
    """Accuracy of one run's evaluations by step. Frame: step, accuracy, is_best. References: label, accuracy."""
    base = alt.Chart(frame).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(zero=True)),
        y=alt.Y("accuracy:Q", title="accuracy (dev, full length)", scale=alt.Scale(domain=[0, 1])),
        tooltip=["step:Q", alt.Tooltip("accuracy:Q", format=".3f")],
    )
    return alt.layer(
        _reference_lines(references, "accuracy"),
        base.mark_line(),
        base.mark_point(filled=True, size=40),
        base.transform_filter("datum.is_best").mark_point(shape="diamond", size=170, strokeWidth=2),
    ).properties(height=_HEIGHT)


def positions_chart(frame: pd.DataFrame, horizons: pd.DataFrame, title: str, *, band: bool) -> Layers:
    """A divergence by completion position, with the horizon as a dashed line.

    Frame: series, position, mean, p90. Horizons: label, horizon. `band` adds the 90th percentile of each series.
    """
    # Divergence is heavy-tailed: a square-root axis keeps the small values visible without hiding zero.
    y_scale = alt.Scale(type="sqrt")
    x_channel = alt.X("position:Q", title="completion position (token)", axis=alt.Axis(tickMinStep=1))
    legend = alt.Legend(
        orient="bottom", columns=3, labelLimit=320, symbolOpacity=1, symbolType="stroke", symbolStrokeWidth=3
    )
    colour = alt.Color("series:N", title=None, sort=None, legend=legend)
    tooltip: list[str | alt.Tooltip] = [
        "series:N",
        "position:Q",
        alt.Tooltip("mean:Q", format=".4~g"),
        alt.Tooltip("p90:Q", format=".4~g"),
        alt.Tooltip("count:Q", title="rollouts"),
    ]
    base = alt.Chart(frame).encode(x=x_channel, color=colour)
    layers: list[alt.Chart] = []
    if band:
        layers.append(
            base.mark_area(opacity=0.18).encode(y=alt.Y("mean:Q", title=title, scale=y_scale), y2=alt.Y2("p90:Q"))
        )
    mean = base.encode(y=alt.Y("mean:Q", title=title, scale=y_scale), tooltip=tooltip)
    layers += [
        mean.mark_line(strokeWidth=1.75),
        mean.mark_point(opacity=0, size=60),
    ]  # the points only catch the pointer
    ends = alt.Chart(horizons).encode(x=alt.X("horizon:Q", title="completion position (token)"))
    layers.append(ends.mark_rule(strokeDash=[5, 4], color=_NEUTRAL, size=1.5))
    layers.append(
        ends.mark_text(align="left", dx=5, color=_NEUTRAL, baseline="top").encode(y=alt.value(2), text="label:N")
    )
    # The legend takes its lines from the height.
    return alt.layer(*layers).properties(height=_HEIGHT + 20 * (frame["series"].nunique() // 3))


def flops_bars(frame: pd.DataFrame) -> alt.Chart:
    """FLOPs by phase as one stacked bar per row. Frame: who, phase, flops, order."""
    chart: alt.Chart = (
        alt.Chart(frame)
        .mark_bar(height=18)
        .encode(
            y=alt.Y("who:N", title=None, sort=None, axis=alt.Axis(labelLimit=220)),
            x=alt.X("flops:Q", axis=_FLOPS_AXIS),
            color=alt.Color("phase:N", title=None, sort=None, legend=alt.Legend(orient="bottom", columns=2)),
            order="order:Q",
            tooltip=["who:N", "phase:N", alt.Tooltip("flops:Q", format=".3~s", title="FLOPs")],
        )
        .properties(height=alt.Step(28))
    )
    return chart


def horizon_chart(frame: pd.DataFrame) -> Layers:
    """The horizon by step, as the schedule will set it; a band to `longest` where training decides. Frame: step, horizon, longest."""
    base = alt.Chart(frame).encode(
        x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, tickCount=5)),
        y=alt.Y("horizon:Q", title="horizon (tokens)", scale=alt.Scale(domainMin=0)),
        tooltip=["step:Q", "horizon:Q", "longest:Q"],
    )
    band = base.mark_area(interpolate="step-after", opacity=0.25).encode(y2="longest:Q")
    return alt.layer(band, base.mark_line(interpolate="step-after")).properties(height=130)
