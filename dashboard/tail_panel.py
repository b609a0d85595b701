"""What the sentinel saw of whole texts while a prefix was trained, each figure beside the teacher's own."""

from collections.abc import Mapping, Sequence

import pandas as pd
import streamlit as st

from backend.schemas import Metric, Run
from dashboard import cached, charts, frames, notices
from dashboard.api_client import ApiClient

PREFIX = "sentinel_"
_OF_TEACHER = "sentinel_teacher_"
_TITLES = {
    "reverse_kl_beyond": "Reverse KL behind the horizon (nats)",
    "stop_probability": "P(EOS) where the teacher stops",
    "eos_rate": "Share ended by EOS",
    "mean_tokens": "Tokens per text",
    "repetition": "Share of repeated 4-grams",
    "reverse_kl_inside": "Reverse KL inside the horizon (nats)",
}


def teacher_frame(name: str, known: Mapping[str, Metric]) -> pd.DataFrame:
    """label, value of the teacher's own figure; its divergence from itself is 0 and is not drawn."""
    values = (
        [value for value in known[_OF_TEACHER + name].values if value is not None]
        if _OF_TEACHER + name in known
        else []
    )
    return pd.DataFrame([{"label": "teacher", "value": values[-1]}] if values else [], columns=["label", "value"])


def tail_table(metrics: Sequence[Metric]) -> pd.DataFrame:
    """One row per measurement with the figures of student and teacher."""
    series = {
        one.key.removeprefix(PREFIX): pd.Series(one.values, index=one.steps)
        for one in metrics
        if one.key.startswith(PREFIX)
    }
    return pd.DataFrame(series).rename_axis("step").reset_index()


def tail(client: ApiClient, run: Run) -> None:
    """Small charts, a figure each, and the table behind them."""
    found = cached.metrics(client, run)
    known = {one.key: one for one in found if one.key.startswith(PREFIX)}
    if not known:
        said = "has measured nothing yet" if run.spec.sentinel.kind == "watch" else "is off"
        st.caption(
            f"The sentinel {said}. With `sentinel` set to watch, a few whole texts show every few steps what becomes of the text behind "
            "the prefix: divergence, endings, length, repetition."
        )
        return
    st.caption(
        "A few full-length rollouts that nothing is trained on, the same prompts every time. A short prefix can empty this "
        "tail while its own loss falls. The dashed line is the teacher's own figure."
    )
    series = {name: frames.metric_frame(known[PREFIX + name]) for name in _TITLES if PREFIX + name in known}
    drawn = [name for name, frame in series.items() if not frame.empty]
    columns = st.columns(2, gap="medium")
    for at, name in enumerate(drawn):
        with columns[at % 2]:
            st.markdown(f"**{_TITLES[name]}**")
            st.altair_chart(
                charts.tail_line(series[name], teacher_frame(name, known)), key=f"tail-{name}",
                alt=f"{_TITLES[name]} by step beside the teacher's; data in the table below",
            )  # fmt: skip
    notices.data_behind(tail_table(found), f"tail-{run.id}")
