"""What every view says in the same way: problems, empty places, states, and the data behind a chart."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pandas as pd
import streamlit as st

from backend.run_states import RunState
from dashboard import sign_in
from dashboard.api_errors import ApiDown, ApiError, Invalid, NotFound, SignedOut
from dashboard.csv_export import csv_of

Colour = Literal["red", "orange", "blue", "green", "violet", "gray"]
STATE_LOOKS: dict[RunState, tuple[str, str, Colour]] = {
    "queued": ("queued", ":material/schedule:", "gray"),
    "starting": ("starting", ":material/hourglass_top:", "blue"),
    "running": ("running", ":material/play_arrow:", "blue"),
    "pausing": ("pausing", ":material/hourglass_bottom:", "orange"),
    "paused": ("paused", ":material/pause_circle:", "violet"),
    "cancelling": ("stopping", ":material/hourglass_bottom:", "orange"),
    "succeeded": ("succeeded", ":material/check_circle:", "green"),
    "failed": ("failed", ":material/error:", "red"),
    "cancelled": ("stopped", ":material/stop_circle:", "gray"),
}
NOTHING = "–"
"""In a cell without a figure."""
_MARKDOWN = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]()<>#+!|~$:"})


def plain(text: str) -> str:
    """Text from people or models with Streamlit's markdown signs made harmless."""
    return text.translate(_MARKDOWN)


def first_paragraph(message: str) -> tuple[str, str]:
    """It and the rest: bold and coloured text of Markdown ends with its paragraph."""
    first, _, rest = message.strip().partition("\n\n")
    return first, rest.strip()


@contextmanager
def problems_shown() -> Iterator[None]:
    """Shows an ApiError as a notice and ends the view there; what was drawn before stays."""
    try:
        yield
    except ApiError as error:
        show_problem(error)
        st.stop()


def show_problem(error: ApiError) -> None:
    with st.container(border=True):
        icon = ":material/cloud_off:" if isinstance(error, ApiDown) else ":material/error:"
        st.error(f"**{plain(error.message)}**\n\n{plain(error.advice)}", icon=icon)
        if isinstance(error, Invalid):
            for finding in error.findings:
                st.markdown(f"- `{finding.field or 'spec'}`: {plain(finding.message)}")
        with st.container(horizontal=True):
            if isinstance(error, NotFound):
                st.page_link("views/runs.py", label="To the runs", icon=":material/list:")
            elif isinstance(error, SignedOut) and not sign_in.is_local():
                st.button("Sign in again", icon=":material/login:", key="sign-in-again", on_click=sign_in.sign_out)
            elif st.button("Try again", icon=":material/refresh:", key="try-again"):
                st.rerun()


def empty(title: str, text: str, icon: str = ":material/inbox:") -> None:
    with st.container(border=True):
        st.markdown(f"## {icon} {title}")
        st.markdown(text)


def state_badge(state: RunState) -> None:
    label, icon, colour = STATE_LOOKS[state]
    st.badge(label, icon=icon, color=colour)


def data_behind(frame: pd.DataFrame, name: str, *, label: str = "Show data", key: str | None = None) -> None:
    """The table behind a chart and its download as CSV; `name` is the file's, and unique in the view.

    It is sent when somebody opens it, so that no page waits for tables nobody looks at. `key` keeps it open while the name
    changes, such as with a step.
    """
    behind = st.expander(label, icon=":material/table:", key=f"behind-{key or name}", on_change="rerun")
    if behind.open:
        with behind:
            st.dataframe(frame, hide_index=True, key=f"data-{name}")
            csv_button(frame, name)


def csv_button(frame: pd.DataFrame, name: str) -> None:
    st.download_button(
        "CSV",
        data=lambda: csv_of(frame),
        file_name=f"{name}.csv",
        mime="text/csv",
        icon=":material/download:",
        on_click="ignore",
        key=f"csv-{name}",
    )
