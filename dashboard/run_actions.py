"""What a person can do with a run: stop, pause, go on, try again. Each says what is lost before it is chosen."""

from collections.abc import Callable

import streamlit as st

from backend.run_states import ACTIVE_STATES
from backend.schemas import Run
from dashboard import cached, rights
from dashboard.api_client import ApiClient

_MOVING = "Stopping: the present step ends first."


def buttons(client: ApiClient, run: Run) -> None:
    """The actions that the run's state and the person's role allow, in a row."""
    refusal = rights.refusal(client)
    if refusal is not None:
        st.caption(f":material/visibility: {refusal}")
        return
    if run.state in ACTIVE_STATES and run.desired_state != "cancel":
        _pause_or_go_on(client, run)
    if run.state in ACTIVE_STATES or run.state == "paused":
        _stop_menu(client, run)
    if run.state == "paused" and st.button("Resume", icon=":material/play_arrow:", type="primary", key="resume"):
        _do(lambda: client.resume(run.id), "In the queue again; it goes on from its last checkpoint.")
    if run.state in ("failed", "cancelled"):
        _retry_menu(client, run)
    if run.state == "queued":
        _priority(client, run)


def _pause_or_go_on(client: ApiClient, run: Run) -> None:
    if run.desired_state == "pause":
        if st.button("Do not pause", icon=":material/play_arrow:", key="unpause"):
            _do(lambda: client.resume(run.id), "It goes on.")
        return
    saved = (
        "It waits until it is resumed." if run.state == "queued" else "A checkpoint is written first: nothing is lost."
    )
    if st.button("Pause", icon=":material/pause:", key="pause", help=f"{saved} Its worker is free for other runs."):
        _do(lambda: client.pause(run.id), "Paused." if run.state == "queued" else _MOVING)


def _stop_menu(client: ApiClient, run: Run) -> None:
    menu = st.popover(
        "Stop…",
        icon=":material/stop_circle:",
        disabled=run.desired_state == "cancel",
        key="stop-menu",
        on_change="rerun",
    )
    if not menu.open:  # what it says costs a request for each new event
        return
    with menu:
        if run.state in ("queued", "paused"):
            kept = "It has not started: nothing is lost." if run.state == "queued" else "Its checkpoints are kept."
            st.markdown(kept)
            if st.button(
                "Take it out of the queue" if run.state == "queued" else "End it", type="primary", key="stop-idle"
            ):
                _do(lambda: client.cancel(run.id, checkpoint=False), "Stopped.")
            return
        st.markdown("**Stop and save** finishes the present step and writes a checkpoint.")
        if st.button("Stop and save", type="primary", icon=":material/save:", key="stop-save"):
            _do(lambda: client.cancel(run.id, checkpoint=True), _MOVING)
        st.markdown(f"**Stop now** keeps only the checkpoints that are already there; {_lost(client, run)}")
        if st.button("Stop now", icon=":material/stop:", key="stop-now"):
            _do(lambda: client.cancel(run.id, checkpoint=False), _MOVING)


def _lost(client: ApiClient, run: Run) -> str:
    """What stopping now would lose, by the newest checkpoint."""
    newest = max((saved.step for saved in cached.checkpoints_of(client, run)), default=None)
    if newest is None:
        return f"there is none yet, so all {run.step:,} steps are lost."
    lost = run.step - newest
    return (
        f"the newest is of step {newest:,}, so {lost:,} steps are lost." if lost > 0 else "none of its steps is lost."
    )


def _retry_menu(client: ApiClient, run: Run) -> None:
    steps = [saved.step for saved in cached.checkpoints_of(client, run)]
    if not steps:
        if st.button("Start again", icon=":material/restart_alt:", key="retry-scratch", help="From its first step."):
            _do(lambda: client.retry(run.id, from_scratch=True), "In the queue again, from its first step.")
        return
    with st.popover("Try again…", icon=":material/restart_alt:"):
        if st.button(f"Go on from step {max(steps):,}", type="primary", key="retry"):
            _do(lambda: client.retry(run.id, from_scratch=False), "In the queue again, from its last checkpoint.")
        st.markdown("**Start again** begins with the first step; the figures and checkpoints so far are replaced.")
        if st.button("Start again", key="retry-scratch"):
            _do(lambda: client.retry(run.id, from_scratch=True), "In the queue again, from its first step.")


def _priority(client: ApiClient, run: Run) -> None:
    with st.popover(f"Priority {run.priority}", icon=":material/low_priority:"):
        wanted = st.number_input(
            "Priority", -100, 100, run.priority, key="priority", help="Queued runs with a higher one come first."
        )
        if st.button("Set", key="set-priority", disabled=wanted == run.priority):
            _do(lambda: client.set_priority(run, int(wanted)), f"Its priority is {int(wanted)}.")


def _do(ask: Callable[[], Run], said: str) -> None:
    ask()
    cached.run.clear()
    st.toast(said)
    st.rerun()
