"""Home: what is running, what has finished, and for a first visit what to do."""

import streamlit as st

from backend.run_states import ENDED_STATES
from backend.schemas import RunSummary
from dashboard import alert_notices, cached, notices, waiting
from dashboard.api_client import ApiClient
from dashboard.api_errors import ApiError
from dashboard.frames import accuracy_of
from dashboard.quantities import age_text, flops_text, seconds_text

_REFRESH_SECONDS = 3
_NUM_FINISHED = 5
_NUM_QUEUED = 8


def first_visit() -> None:
    with st.container(border=True):
        st.markdown(
            "## Train a small model to follow a large one, on the first tokens only\n"
            "A student answers prompts, but only the **first L tokens** of each answer. The teacher scores those tokens, and "
            "where the two disagree the student learns. Sampling stops at L, so a step costs a fraction of ordinary on-policy "
            "distillation.\n\n"
            "Nothing has run here yet. Two ways to begin:"
        )
        with st.container(horizontal=True):
            st.page_link(
                "views/new_run.py", label="Start the tiny pair on this machine", icon=":material/play_arrow:",
                query_params={"preset": "tiny-demo"},
            )  # fmt: skip
        st.markdown(
            "or run the built-in comparison of prefix lengths from a terminal, which takes some minutes on two CPU cores:"
        )
        st.code("make demo", language="bash")


def run_line(run: RunSummary) -> None:
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.page_link("views/run.py", label=f"**{notices.plain(run.name)}**", query_params={"id": run.id})
            notices.state_badge(run.state)
            st.caption(notices.plain(f"{run.experiment_name} · prefix {run.prefix}"))
        if run.state not in ENDED_STATES:
            done = run.step / run.num_steps if run.num_steps else 0.0
            st.progress(min(done, 1.0), text=f"{run.phase or run.state}, step {run.step:,} of {run.num_steps:,}")
        elif run.state == "failed":
            cause, _ = notices.first_paragraph(run.failure_message or "It failed without a message.")
            st.markdown(f":red[{notices.plain(cause)}]")
        else:
            st.markdown(
                f"accuracy **{accuracy_of(run)}** · training {flops_text(run.training_flops)} in "
                f"{seconds_text(run.training_seconds)} · {age_text(run.finished_at)}"
            )


def queue(in_line: list[RunSummary]) -> None:
    """Runs that wait, the next one first."""
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            notices.state_badge("queued")
            st.caption(f"{len(in_line)} waiting for a worker, the next one first")
        with st.container(horizontal=True):
            for run in in_line[:_NUM_QUEUED]:
                st.page_link("views/run.py", label=notices.plain(run.name), query_params={"id": run.id})
            if len(in_line) > _NUM_QUEUED:
                st.caption(f"and {len(in_line) - _NUM_QUEUED} more")


@st.fragment(run_every=_REFRESH_SECONDS)
def at_work(client: ApiClient) -> None:
    with notices.problems_shown():
        runs = cached.runs(client)
        active = cached.unfinished_runs(client)
        ended = cached.ended_runs(client)
    if not runs:
        first_visit()
        return
    with notices.problems_shown():
        alert_notices.strip(client)
    ended = sorted(ended, key=lambda run: run.finished_at or run.created_at, reverse=True)
    st.header("Running now", anchor=False)
    for run in active:
        if run.state != "queued":
            run_line(run)
    in_line = waiting.in_line(active)
    if in_line:
        queue(in_line)
    if not active:
        st.caption("Nothing is running.")
    st.header("Last finished", anchor=False)
    for run in ended[:_NUM_FINISHED]:
        run_line(run)
    if not ended:
        st.caption("No run has ended yet.")
    which = "The newest" if cached.is_cut(runs) else "All"
    st.page_link("views/runs.py", label=f"{which} {len(runs):,} runs", icon=":material/list:")


@st.fragment(run_every=_REFRESH_SECONDS * 5)
def system_strip(client: ApiClient) -> None:
    try:
        health = cached.health(client)
    except ApiError as error:
        st.badge(notices.plain(error.message), icon=":material/cloud_off:", color="red")
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge(f"API {health.status}", icon=":material/cloud:", color="green" if health.status == "ok" else "orange")
        count = f"{health.workers} worker{'' if health.workers == 1 else 's'}"
        st.badge(count, icon=":material/memory:", color="green" if health.workers else "orange")
        st.badge(
            f"queue {health.broker}", icon=":material/notifications:", color="green" if health.broker == "up" else "red"
        )
        st.caption(notices.plain(f"Incipit {health.version} · {health.database}"))
        if health.warnings:
            with st.popover(
                f"{len(health.warnings)} note{'' if len(health.warnings) == 1 else 's'}",
                icon=":material/info:",
                type="tertiary",
            ):
                for warning in health.warnings:
                    st.markdown(notices.plain(warning))
    if not health.workers:
        st.warning(
            "No worker is there: runs wait in the queue until one starts (`incipit up` starts one).",
            icon=":material/warning:",
        )


with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
    st.title("Incipit", anchor=False)
    st.page_link("views/new_run.py", label="New run", icon=":material/add_circle:")
system_strip(cached.api())
at_work(cached.api())
