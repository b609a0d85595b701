"""An analysis on the page: its chart, what it says, its figures as a table and as files."""

import altair as alt
import pandas as pd
import streamlit as st

from backend.analyses import Analysis
from dashboard import notices
from dashboard.charts import Layers
from dashboard.csv_export import csv_of
from engine.analysis_spec import AnalysisResult

_HEIGHT = 320
_BINNED = 3  # positions in a bin from which on bars say more than a line


def result_frame(result: AnalysisResult) -> pd.DataFrame:
    """The rows as a frame: start, end, value, low, high, count and the details of each."""
    return pd.DataFrame([row.model_dump(exclude={"details"}) | row.details for row in result.rows])


def result_chart(result: AnalysisResult) -> Layers:
    """The figure by position or prefix length with its interval."""
    frame = result_frame(result)
    is_binned = bool((frame["end"] - frame["start"] >= _BINNED).any())
    is_position = result.axis == "completion position"
    # Divergence and gradients are heavy-tailed: a square root keeps the small ones visible without hiding zero.
    scale = alt.Scale(type="sqrt", domainMin=0) if is_position else alt.Scale(domain=[0, 1])
    x = alt.X("start:Q", title=f"{result.axis} (token)", axis=alt.Axis(tickMinStep=1))
    base = alt.Chart(frame).encode(x=x)
    tooltip = [
        alt.Tooltip("start:Q", title="from"), alt.Tooltip("end:Q", title="to before"),
        *(alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("value", "low", "high")), "count:Q",
    ]  # fmt: skip
    y = alt.Y("value:Q", title=result.measure, scale=scale)
    ends = {"y": alt.Y("low:Q", title=result.measure, scale=scale), "y2": alt.Y2("high:Q")}
    if is_binned:
        bars = base.mark_bar(opacity=0.8).encode(x2="end:Q", y=y, y2=alt.datum(0), tooltip=tooltip)
        spread = base.transform_calculate(middle="(datum.start + datum.end) / 2").mark_rule()
        layers = alt.layer(bars, spread.encode(x=alt.X("middle:Q", title=f"{result.axis} (token)"), **ends))
    elif is_position:
        band = base.mark_area(opacity=0.2).encode(**ends)
        layers = alt.layer(band, base.mark_line(strokeWidth=1.75).encode(y=y, tooltip=tooltip))
    else:
        layers = alt.layer(
            base.mark_rule().encode(**ends),
            base.mark_line(strokeWidth=1.75).encode(y=y),
            base.mark_point(filled=True, size=60).encode(y=y, tooltip=tooltip),
        )
    return layers.properties(height=_HEIGHT)


def show_result(analysis: Analysis) -> None:
    """The answer of a finished analysis."""
    result = analysis.result
    assert result is not None, "a succeeded analysis has a result"
    for sentence in result.sentences:
        st.markdown(f"- {notices.plain(sentence)}")
    st.altair_chart(result_chart(result), alt=f"{result.measure} by {result.axis}")
    st.caption(f"{result.num_prompts} prompts · interval: {result.interval} · {result.seconds:.1f} s")
    frame = result_frame(result)
    with st.expander("The figures", icon=":material/table:"):
        st.dataframe(frame, hide_index=True)
    with st.container(horizontal=True):
        st.download_button(
            "CSV",
            csv_of(frame),
            f"{result.kind}.csv",
            "text/csv",
            icon=":material/download:",
            on_click="ignore",
        )
        st.download_button(
            "JSON", result.model_dump_json(indent=1), f"{result.kind}.json", "application/json",
            icon=":material/download:", on_click="ignore",
        )  # fmt: skip
