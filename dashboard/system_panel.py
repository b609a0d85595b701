"""The System panel of a run: where it ran, what its engine used over time, and where the time of a step goes."""

import altair as alt
import pandas as pd
import streamlit as st

from backend.resources import AttemptPlace, ResourceSample
from backend.run_states import HELD_STATES
from backend.schemas import Metric, Run
from dashboard import cached, notices
from dashboard.api_client import ApiClient
from dashboard.charts import Layers
from dashboard.quantities import age_text, bytes_text

# Title of each chart, and the column of samples_frame that it draws.
_CHARTS = {
    "cpu_percent": "CPU of the engine (%, 100 is one core)",
    "rss_gb": "Memory of the engine (GB)",
    "memory_available_gb": "Memory the machine could still give (GB)",
    "disk_free_gb": "Free on the disk of the runs (GB)",
    "gpu_percent": "GPU utilisation (%)",
    "gpu_memory_gb": "GPU memory in use (GB)",
}
_GIGABYTE = 1e9
_PARTS = {"rollout": "rollouts", "update": "update, teacher included", "other": "everything else"}


def system(client: ApiClient, run: Run) -> None:
    """Draw the panel."""
    found = cached.run_resources(client, run.id)
    if not found.attempts:
        st.caption("No worker has begun this run yet; what it runs on and uses is shown from then on.")
        return
    _facts(run, found.attempts[0], found.samples)
    frame = samples_frame(found.samples)
    if frame.empty:
        st.caption("Nothing was sampled: the attempts ended within two seconds, or were made by an earlier version.")
    else:
        drawn = [column for column in _CHARTS if frame[column].notna().any()]
        places = st.columns(2, gap="medium")
        for at, column in enumerate(drawn):
            with places[at % 2]:
                st.markdown(f"**{_CHARTS[column]}**")
                chart = usage_chart(frame, column)
                st.altair_chart(
                    chart, key=f"usage-{column}", alt=f"{_CHARTS[column]} over time; data in the table below"
                )
        st.caption(not_measured(frame))
        notices.data_behind(frame, f"resources-{run.id}")
    _step_time(client, run)
    st.markdown("**Attempts**")
    st.dataframe(attempts_frame(found.attempts), hide_index=True, key="attempts")


def _facts(run: Run, newest: AttemptPlace, samples: list[ResourceSample]) -> None:
    peak = max((one.rss_bytes for one in samples if one.rss_bytes is not None), default=None)
    with st.container(horizontal=True):
        if run.state in HELD_STATES:
            st.metric(
                "Heartbeat", age_text(run.heartbeat_at), border=True, width="content",
                help="When the worker last said that it holds this run; without one for a minute the run is taken back.",
            )  # fmt: skip
        st.metric("Attempt", newest.attempt, border=True, width="content")
        st.metric("Device", newest.device or "–", border=True, width="content")
        st.metric("Precision", newest.precision or "–", border=True, width="content")
        st.metric(
            "Memory, largest sample", "–" if peak is None else bytes_text(peak), border=True, width="content",
            help="Of the engine and its child processes; the metric *peak memory* also sees what lies between two samples.",
        )  # fmt: skip
    versions = ", ".join(f"{name} {version}" for name, version in newest.versions.items())
    st.caption(notices.plain(f"Worker {newest.worker} on {newest.host}" + (f" · {versions}" if versions else "")))


def samples_frame(samples: list[ResourceSample]) -> pd.DataFrame:
    """One row per sample: time, attempt and the columns of the charts, bytes as GB."""
    rows = [one.model_dump() for one in samples]
    frame = pd.DataFrame(rows, columns=list(ResourceSample.model_fields))
    sizes = [name for name in ResourceSample.model_fields if name.endswith("_bytes")]
    for name in sizes:
        frame[name.replace("_bytes", "_gb")] = pd.to_numeric(frame[name]) / _GIGABYTE
    frame = frame.drop(columns=sizes)
    return frame[["time", "attempt", *[name for name in frame if name not in ("time", "attempt")]]]


def usage_chart(frame: pd.DataFrame, column: str) -> Layers:
    """A figure over time, one line per attempt. Frame: that of samples_frame."""
    base = alt.Chart(frame[["time", "attempt", column]].dropna()).encode(
        x=alt.X("time:T", title=None, axis=alt.Axis(tickCount=5, format="%H:%M:%S")),
        y=alt.Y(f"{column}:Q", title=None, scale=alt.Scale(domainMin=0)),
        detail="attempt:N",
        tooltip=[
            alt.Tooltip("time:T", format="%d %b %H:%M:%S"),
            "attempt:N",
            alt.Tooltip(f"{column}:Q", format=".3~g", title=_CHARTS[column]),
        ],
    )
    return alt.layer(base.mark_line(strokeWidth=1.75), base.mark_point(filled=True, size=18)).properties(height=150)


def not_measured(frame: pd.DataFrame) -> str:
    """What the charts do not show, said plainly."""
    said = "Sampled by the worker each 10 s (each 2 s at first); a long run keeps at most 720 samples."
    if frame["gpu_percent"].isna().all() and frame["gpu_memory_gb"].isna().all():
        said += " No GPU is measured: this run's worker slot has none, or its driver's `nvidia-smi` does not answer."
    else:
        said += " GPU figures are of the whole GPU, whoever uses it."
    return said + " Power, temperature and network are not measured."


def _step_time(client: ApiClient, run: Run) -> None:
    frame = step_time_frame({one.key: one for one in cached.metrics(client, run)})
    if frame.empty:
        st.caption("No step is timed yet.")
        return
    st.markdown("**Where the time of a step goes (seconds)**")
    st.altair_chart(
        step_time_chart(frame), key="step-time", alt="Seconds of each step by part; data in the table below"
    )
    st.caption(
        "The teacher scores inside the update and is not timed by itself. Evaluations and checkpoints lie between steps."
    )
    notices.data_behind(frame, f"step-time-{run.id}")


def step_time_frame(known: dict[str, Metric]) -> pd.DataFrame:
    """step, part, seconds: rollouts, update, and what is left of the whole."""
    total = known.get("seconds.total")
    if total is None:
        return pd.DataFrame(columns=["step", "part", "seconds"])
    wide = pd.DataFrame({"step": total.steps, "total": total.values}).set_index("step")
    for part in ("rollout", "update"):
        one = known.get(f"seconds.{part}")
        wide[part] = pd.Series(one.values, index=one.steps) if one is not None else 0.0
    wide = wide.dropna()
    wide["other"] = (wide["total"] - wide["rollout"] - wide["update"]).clip(lower=0.0)
    long = wide.reset_index().melt("step", list(_PARTS), "part", "seconds")
    return long.assign(part=long["part"].map(_PARTS))


def step_time_chart(frame: pd.DataFrame) -> alt.Chart:
    """Seconds by step, stacked by part. Frame: that of step_time_frame."""
    chart: alt.Chart = (
        alt.Chart(frame)
        .mark_area(opacity=0.85)
        .encode(
            x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1, tickCount=6)),
            y=alt.Y("seconds:Q", title=None, stack=True),
            color=alt.Color("part:N", title=None, sort=list(_PARTS.values()), legend=alt.Legend(orient="bottom")),
            tooltip=["step:Q", "part:N", alt.Tooltip("seconds:Q", format=".3~g")],
        )
        .properties(height=240)
    )
    return chart


def attempts_frame(attempts: list[AttemptPlace]) -> pd.DataFrame:
    """One row per attempt, newest first."""
    return pd.DataFrame(
        {
            "attempt": [one.attempt for one in attempts],
            "host": [one.host for one in attempts],
            "worker": [one.worker for one in attempts],
            "device": [one.device or "–" for one in attempts],
            "began": [age_text(one.started_at) for one in attempts],
            "from step": [one.resumed_from_step for one in attempts],
            "became": [one.outcome or ("at work" if one.ended_at is None else "–") for one in attempts],
            "exit": ["" if one.exit_code is None else str(one.exit_code) for one in attempts],
        }
    )
