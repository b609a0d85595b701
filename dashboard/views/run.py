"""Run: one run as it happens, and afterwards what became of it."""

import streamlit as st

from backend.run_states import ACTIVE_STATES, RunState
from backend.schemas import Run
from dashboard import (
    address,
    cached,
    failure_panel,
    frames,
    notices,
    run_actions,
    run_panels,
    run_warnings,
    system_panel,
    tail_panel,
)
from dashboard.api_client import ApiClient
from dashboard.quantities import elapsed_seconds, range_text, seconds_text

_REFRESH_SECONDS = 2
_IDLE_REFRESH_SECONDS = 10
_LEFT = {"pausing": "pausing: a checkpoint is written first", "cancelling": "stopping: the present step ends first"}
_PANELS = {
    "Overview": run_panels.overview,
    "Metrics": run_panels.metrics,
    "Evaluations": run_panels.evaluations,
    "Positions": run_panels.positions,
    "Tail": tail_panel.tail,
    "System": system_panel.system,
    "Log": run_panels.log,
    "Spec": run_panels.spec,
}


def header(client: ApiClient, run: Run) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.title(notices.plain(run.name), anchor=False, width="content")
        notices.state_badge(run.state)
    seed = f" · seed {run.seed}" if run.seed else ""
    st.caption(
        notices.plain(
            f"{run.experiment_name} · prefix {run.prefix} · {run.divergence} · {run.student} ← {run.teacher}{seed}"
        )
    )
    if run.note:
        st.markdown(notices.plain(run.note))
    with st.container(horizontal=True, vertical_alignment="center"):
        run_actions.buttons(client, run)
        st.page_link(
            "views/inspect.py", label="Inspect tokens", icon=":material/manage_search:", query_params={"run": run.id}
        )
        st.page_link(
            "views/compare.py",
            label="Compare",
            icon=":material/compare_arrows:",
            query_params={"experiment": run.experiment_id},
        )
        st.page_link("views/checkpoints.py", label="Checkpoints", icon=":material/save:", query_params={"run": run.id})
        st.page_link(
            "views/new_run.py", label="Clone and edit", icon=":material/content_copy:", query_params={"from": run.id}
        )


def progress(client: ApiClient, run: Run) -> None:
    of_steps = min(run.step / run.num_steps, 1.0) if run.num_steps else 0.0
    done = of_steps if run.done_share is None else run.done_share
    took = seconds_text(elapsed_seconds(run.started_at, run.finished_at))
    if run.state == "queued":
        place = f"number {run.queue_position} in the queue" if run.queue_position else "in the queue"
        st.progress(0.0, text=f"Waiting for a worker, {place}.")
        if run.waits_because:
            st.warning(notices.plain(run.waits_because), icon=":material/hourglass_disabled:")
    elif run.state in ACTIVE_STATES:
        left = _LEFT.get(run.state, "estimating the time left")
        if run.state == "running" and run.eta_seconds is not None:
            sooner = ", or less by early stopping" if run.spec.early_stopping.kind != "none" else ""
            left = f"about {range_text(run.eta_seconds)} left{sooner}"
        phase = run.phase or run.state
        st.progress(done, text=f"{phase} · step {run.step:,} of {run.num_steps:,} · {took} so far · {left}")
    elif run.state == "failed":
        failure_panel.show(run, frames.log_lines(cached.events(client, run)))
    elif run.state == "paused":
        st.progress(done, text=f"Paused at step {run.step:,} of {run.num_steps:,}; it goes on when it is resumed.")
    else:
        st.caption(f"{run.step:,} of {run.num_steps:,} steps in {took}, attempt {run.attempt}.")
        if run.state == "succeeded" and run.step < run.num_steps:
            run_warnings.ended_early(client, run)


def pace(state: RunState) -> int | None:
    """Seconds between two looks at a run in this state; None when nothing happens any more by itself."""
    if state in ("queued", "paused"):
        return _IDLE_REFRESH_SECONDS
    return _REFRESH_SECONDS if state in ACTIVE_STATES else None


def live(run_id: str, drawn_every: int | None) -> None:
    """Header, progress and the chosen panel; asks for a full rerun when its timer is to run at another pace."""
    client = cached.api()
    with notices.problems_shown():
        run = cached.run(client, run_id)
        header(client, run)
        progress(client, run)
        run_warnings.warnings(client, run)
        run_panels.figures(client, run)
        panel = st.segmented_control(
            "Panel",
            list(_PANELS),
            default="Overview",
            required=True,
            key="panel",
            bind="query-params",
            label_visibility="collapsed",
        )
        _PANELS[panel](client, run)
    if pace(run.state) != drawn_every:
        st.rerun()


run_id = address.asked("id")
if run_id is None:
    st.title("Run", anchor=False)
    notices.empty("No run chosen", "Open one from the list of runs.")
    st.page_link("views/runs.py", label="To the runs", icon=":material/list:")
    st.stop()
with notices.problems_shown():
    state = cached.run(cached.api(), run_id).state
st.fragment(live, run_every=pace(state))(run_id, pace(state))
