"""System: what works for this installation, and what waits for it."""

import pandas as pd
import streamlit as st

from backend.schemas import RunSummary, Worker
from dashboard import cached, notices, waiting, worker_actions
from dashboard.api_client import ApiClient
from dashboard.quantities import age_text, bytes_text

_REFRESH_SECONDS = 5
_TOLD = "Of runs that you may see: a worker with another project's run, an analysis or a question shows none."


def workers_frame(workers: list[Worker], runs: list[RunSummary]) -> pd.DataFrame:
    """One row per worker slot: what it is, and the run that it has, as far as that is told."""
    names = {run.id: run.name for run in runs}

    def run_of(worker: Worker) -> str:
        # Without a run it may wait, work for another project, or answer a question: the API does not tell which.
        return names.get(worker.run_id, worker.run_id) if worker.run_id and worker.is_connected else "–"

    return pd.DataFrame(
        [
            {
                "host": one.host,
                "slot": one.slot,
                "device": one.capabilities.device or "–",
                "cores": one.capabilities.cores,
                "memory": _size(one.capabilities.memory_total_bytes),
                "free memory": _size(one.capabilities.memory_available_bytes),
                "GPU memory": _size(one.capabilities.gpu_memory_total_bytes),
                "labels": ", ".join(one.capabilities.labels) or "–",
                "state": worker_actions.state_of(one),
                "works on": run_of(one),
                "last heard of": age_text(one.heartbeat_at),
                "version": one.capabilities.versions.get("incipit", "–"),
                "torch": one.capabilities.versions.get("torch", "–"),
                "clock off": f"{one.clock_offset_seconds:+.1f} s",
            }
            for one in workers
        ]
    )  # fmt: skip


def _size(num_bytes: int | None) -> str:
    return "–" if num_bytes is None else bytes_text(num_bytes)


def queue_frame(runs: list[RunSummary]) -> pd.DataFrame:
    """Runs that wait, in the order in which they will be worked on."""
    return pd.DataFrame(
        [
            {
                "place": place,
                "run": run.name,
                "experiment": run.experiment_name,
                "priority": run.priority,
                "created": age_text(run.created_at),
            }
            for place, run in enumerate(waiting.in_line(runs), 1)
        ]
    )


@st.fragment(run_every=_REFRESH_SECONDS)
def show(client: ApiClient) -> None:
    with notices.problems_shown():
        health, workers, runs = cached.health(client), cached.workers(client), cached.unfinished_runs(client)
    with st.container(horizontal=True):
        st.metric("API", health.status, border=True)
        st.metric("Queue", health.broker, border=True)
        st.metric(
            "Store", health.store, border=True, help="Where checkpoints are kept; down is a bucket that does not work."
        )
        st.metric("Workers", health.workers, border=True)
        at_work = sum(one.run_id is not None and one.is_connected for one in workers)
        st.metric("At work", at_work, border=True, help=_TOLD)
        st.metric("Waiting", sum(run.state == "queued" for run in runs), border=True)
    for warning in health.warnings:
        st.info(notices.plain(warning), icon=":material/info:")
    st.header("Workers", anchor=False)
    if workers:
        told = {"works on": st.column_config.TextColumn(help=_TOLD)}
        st.dataframe(workers_frame(workers, runs), hide_index=True, key="workers", column_config=told)
        worker_actions.show(client, workers)
    else:
        notices.empty(
            "No worker", "Runs wait until one starts: `incipit up` on this machine, `python -m worker` on others."
        )
    st.header("Queue", anchor=False)
    queued = queue_frame(runs)
    if queued.empty:
        st.caption("No run waits.")
    else:
        st.dataframe(queued, hide_index=True, key="queue")
        st.caption(
            "A run's priority is set on its page; a higher one comes first. Of equally urgent runs those come first whose project, "
            "then whose owner, has the least at work; of one owner's runs the oldest. Places are by priority and age."
        )
        waiting.notices_of(runs)


st.title("System", anchor=False)
st.caption("What this installation consists of, how it is, and what it will do next.")
client = cached.api()
show(client)
st.header("Versions and addresses", anchor=False)
with notices.problems_shown():
    state = cached.health(client)
st.table(
    pd.DataFrame(
        {
            "what": ["Incipit", "database", "API"],
            "is": [
                state.version,
                state.database,
                f"{client.public_url}/api/v1, documented at {client.public_url}/docs",
            ],
        }
    ),
    hide_index=True,
)
