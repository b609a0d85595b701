"""What an admin of all projects can do with a worker: let it take nothing new, and let it take runs again."""

from collections.abc import Callable, Sequence

import streamlit as st

from backend.schemas import Worker
from backend.unique_labels import unique_labels
from dashboard import cached, notices
from dashboard.api_client import ApiClient
from dashboard.api_errors import ApiError

_STATES = {"no": "takes runs", "draining": "draining", "drained": "drained"}


def state_of(worker: Worker) -> str:
    """In words for the table."""
    return _STATES[worker.drain] if worker.is_connected else "not heard of"


def names_of(workers: Sequence[Worker]) -> dict[str, str]:
    """By their ids; without anything that changes: the browser names its choice by its label, and one that is gone is the first."""
    return unique_labels({one.id: f"{one.host}, {one.slot}, process {one.pid}" for one in workers})


def show(client: ApiClient, workers: Sequence[Worker]) -> None:
    """The choice of a connected worker and what can be done with it; for others than admins a sentence."""
    there = {one.id: one for one in workers if one.is_connected}
    if not there:
        return
    if not cached.me(client).is_admin_of_all:
        st.caption(
            ":material/visibility: To drain a worker before its machine is serviced, ask an admin of all projects."
        )
        return
    labels = names_of(list(there.values()))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.selectbox(
            "Worker", list(there), format_func=lambda id: labels.get(id, id), key="drained-worker", width=320
        )
        worker = there.get(chosen or "")
        if worker is None:
            return
        # Each worker's buttons are its own: a click on one that is gone is not one on that of another worker.
        if worker.drain == "no":
            if st.button("Drain", icon=":material/do_not_disturb_on:", key=f"drain-{worker.id}",
                         help="It takes nothing new and finishes what it works on."):  # fmt: skip
                _do(lambda: client.drain_worker(worker.id, requeue=False))
            if worker.run_id is not None and _give_back_button(worker):
                _do(lambda: client.drain_worker(worker.id, requeue=True))
            return
        if st.button("Take runs again", icon=":material/play_arrow:", key=f"undrain-{worker.id}"):
            _do(lambda: client.resume_worker(worker.id))
        if worker.drain == "draining" and not worker.drain_requeues and _give_back_button(worker):
            _do(lambda: client.drain_worker(worker.id, requeue=True))


def _give_back_button(worker: Worker) -> bool:
    return st.button(
        "Drain and give its run back", icon=":material/assignment_return:", key=f"drain-requeue-{worker.id}",
        help="Its run writes a checkpoint after the present step and goes on with another worker.",
    )  # fmt: skip


def _do(act: Callable[[], Worker]) -> None:
    try:
        act()
    except ApiError as error:
        notices.show_problem(error)
        return
    cached.workers.clear()
    st.rerun()
