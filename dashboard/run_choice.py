"""Choosing a run, by the URL or by a list; shared by the views that look at one run."""

import streamlit as st

from backend.schemas import RunSummary
from backend.unique_labels import unique_labels
from dashboard import address, cached
from dashboard.api_client import ApiClient
from dashboard.api_errors import NotFound


def run_label(run: RunSummary) -> str:
    """Without its state: the browser names its choice by the label, which must still be there when it arrives."""
    return f"{run.name} · {run.experiment_name}"


def choose_run(client: ApiClient, runs: list[RunSummary]) -> RunSummary:
    """The run of the query parameter `run`, or the newest; raises NotFound for an unknown id."""
    by_id = {run.id: run for run in runs}
    wanted = address.asked("run")
    if wanted is not None and wanted not in by_id:
        by_id = {wanted: cached.run(client, wanted), **by_id}  # older than the list, or not there at all
    ids, labels = list(by_id), unique_labels({run.id: run_label(run) for run in by_id.values()})
    chosen = st.selectbox(
        "Run",
        ids,
        index=address.asked_index("run", ids),
        format_func=lambda one: labels.get(one, one),
        key="chosen-run",
    )
    if chosen is None:
        raise NotFound("There is no run to choose.")
    address.keep("run", chosen)
    return by_id[chosen]
