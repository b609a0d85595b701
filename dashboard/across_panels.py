"""Inspect, across rollouts: the map of position and step, quantiles by position, divergent tokens, and the aid for the prefix."""

from typing import Any

import streamlit as st

from backend.schemas import RunSummary
from dashboard import address, cached, divergence_charts, notices
from dashboard.api_client import ApiClient
from dashboard.divergence_charts import CELL, FEW, METRICS
from engine.trace_profile import TraceMetric

ROLLOUT, ACROSS, PREFIX = "This rollout", "Across rollouts", "Prefix length"
_MAP = "divergence-map"


def across(client: ApiClient, run: RunSummary, step: int) -> None:
    """All traced rollouts of a run together."""
    metric: TraceMetric = st.segmented_control(
        "Quantity", list(METRICS), default="reverse_kl", required=True, key="quantity", bind="query-params",
        format_func=lambda one: METRICS[one][0], label_visibility="collapsed",
    )  # fmt: skip
    title, unit = METRICS[metric]
    grid = cached.divergence_grid(client, run.id, metric)
    if not grid.rows:
        _nothing_yet()
        return
    st.header("By position and step", anchor=False)
    frame = divergence_charts.grid_frame(grid)
    st.altair_chart(
        divergence_charts.grid_chart(frame, metric), key=_MAP, on_select=_open_cell, selection_mode=CELL,
        alt=f"Mean {title} by completion position and step; data in the table below",
    )  # fmt: skip
    low, high = divergence_charts.map_limits(frame, metric)
    ends = (
        f"dark is {low:.3g}"
        if metric == "overlap_mass"
        else f"the brightest colour is {high:.3g} and more (99th percentile)"
    )
    read = (
        f" {grid.num_steps_read} of {grid.num_steps} traced steps are read."
        if grid.num_steps_read < grid.num_steps
        else ""
    )
    st.caption(
        f"{title} ({unit}), {divergence_charts.estimator(metric)}: means over the stored rollouts at full length; {ends}. The white "
        f"line is where the prefix ended at that step. Grey: fewer than {FEW} rollouts. Choose a cell to read that step from that "
        f"token on.{read}"
    )
    notices.data_behind(frame, f"map-{metric}-{run.id}")
    _positions(client, run, step, metric)
    _tokens(client, run, step)


def prefix_aid(client: ApiClient, run: RunSummary, step: int) -> None:
    """How long should the prefix be?"""
    aid = cached.prefix_aid(client, run.id, step)
    if not aid.curves:
        _nothing_yet()
        return
    st.header("How long should my prefix be?", anchor=False)
    for sentence in aid.sentences:
        st.markdown(f"- {notices.plain(sentence)}")
    frame, horizon = divergence_charts.aid_frame(aid), aid.curves[-1].horizon
    for field, words in divergence_charts.AID_TITLES.items():
        st.markdown(f"**{words}**")
        st.altair_chart(
            divergence_charts.aid_chart(frame, field, horizon, aid.weak_from), key=f"aid-{field}",
            alt=f"{words} by completion position; data in the table below",
        )  # fmt: skip
    shaded = (
        " Shaded: the reverse KL of the first step stays below half of its start value."
        if aid.weak_from is not None
        else ""
    )
    st.caption(
        f"An aid, not a verdict: {aid.curves[0].num_rollouts} stored rollouts a step, and few of them reach the last positions. "
        f"Dashed: the prefix at step {aid.curves[-1].step}.{shaded} Divergences and entropies are over the full vocabulary; the overlap is "
        "over the stored candidates (both models' top k), a lower bound."
    )
    notices.data_behind(frame, f"prefix-aid-{run.id}")
    st.page_link(
        "views/analyses.py", label="Ask more prompts before training: analyses of these models", icon=":material/query_stats:",
        query_params={"from": run.id},
    )  # fmt: skip


def _positions(client: ApiClient, run: RunSummary, step: int, metric: TraceMetric) -> None:
    found = cached.divergence_positions(client, run.id, metric, step)
    title = METRICS[metric][0]
    st.header(f"By position at step {step}", anchor=False)
    frame = divergence_charts.quantiles_frame(found)
    st.altair_chart(
        divergence_charts.quantiles_chart(frame, metric, found.horizon), key="position-quantiles",
        alt=f"Median, mean and 10 to 90 % of {title} by completion position; data in the table below",
    )  # fmt: skip
    wide = "" if found.bin_tokens == 1 else f" {found.bin_tokens} positions stand together."
    st.caption(
        f"Over the {max(found.n)} stored rollouts of this step; the last positions are reached by {min(found.n)} of them.{wide}"
    )
    notices.data_behind(frame, f"quantiles-{metric}-{run.id}-step-{step}", key="quantiles")


def _tokens(client: ApiClient, run: RunSummary, step: int) -> None:
    st.header("Most divergent token types", anchor=False)
    only = st.toggle("Only this step", key="only-step", bind="query-params")
    found = cached.divergent_tokens(client, run.id, step if only else None)
    frame = divergence_charts.tokens_frame(found)
    st.dataframe(
        frame, hide_index=True, key="divergent-tokens",
        column_config={
            "mean": st.column_config.NumberColumn("mean reverse KL (nats)", format="%.4f"),
            "share": st.column_config.ProgressColumn("share of all reverse KL", format="percent", min_value=0.0, max_value=1.0),
        },
    )  # fmt: skip
    steps = f"at step {step}" if only else f"over {found.num_steps_read} of {found.num_steps} traced steps"
    st.caption(
        f"Sampled tokens by the reverse KL at their position, summed, of {found.num_tokens:,} tokens {steps}. Of each step the 100 "
        "strongest types are kept, so a rare one may be counted at some steps only."
    )
    notices.csv_button(frame, f"divergent-tokens-{run.id}")


def _open_cell() -> None:
    """Go to the step and position of the cell that was chosen."""
    chosen: list[dict[str, Any]] = st.session_state[_MAP].selection.get(CELL) or []
    if chosen:
        open_at(int(chosen[0]["last_step"]), int(chosen[0]["start"]) - 1)


def open_at(step: int, token: int) -> None:
    """Show the most divergent rollout of a step with a token pinned (counted from 0); for callbacks."""
    st.session_state["chosen-step"] = step
    st.session_state["tab"] = ROLLOUT
    address.keep("tok", token)
    address.keep("prompt", None)


def _nothing_yet() -> None:
    notices.empty(
        "Nothing to take together",
        "The rollouts of this run were stored by a version that did not take them together. A run that is started now has this view.",
    )
