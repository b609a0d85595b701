"""What a run warned of, where nobody can overlook it: the newest alarms with their step and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from backend.schemas import Run, StoredEvent
from dashboard import cached, notices
from dashboard.api_client import ApiClient

_SHOWN = 3  # boxes; the rest waits in a table


@dataclass(frozen=True)
class RunWarning:
    """One warning in words."""

    about: str
    """Its code as words: `cap hits` for `alarm_cap_hits`."""
    step: int | None
    message: str
    advice: str


def told_once(events: Sequence[StoredEvent]) -> list[RunWarning]:
    """Warnings newest first; one that a resumed attempt told again, because it did the step again, once."""
    told = [
        RunWarning(
            about=str(one.payload.get("code", "")).removeprefix("alarm_").replace("_", " "),
            step=step if isinstance(step := one.payload.get("step"), int) else None,
            message=str(one.payload.get("message", "")),
            advice=str(one.payload.get("advice", "")),
        )
        for one in events
    ]
    return list(reversed(dict.fromkeys(told)))


def warnings(client: ApiClient, run: Run) -> None:
    """The newest warnings as boxes, all of them as a table when there are more."""
    told = told_once(cached.notable(client, run, "warning"))
    for one in told[:_SHOWN]:
        head = one.about if one.step is None else f"{one.about} · step {one.step:,}"
        parts = [f"**{notices.plain(head)}**", notices.plain(one.message)]
        if one.advice:
            parts.append(f"**What you can do.** {notices.plain(one.advice)}")
        st.warning("  \n".join(parts), icon=":material/warning:")
    if len(told) > _SHOWN:
        with st.expander(f"All {len(told)} warnings", icon=":material/warning:"):
            columns = ["step", "about", "message", "advice"]
            st.dataframe(pd.DataFrame(told)[columns], hide_index=True, key="warnings")


def ended_early(client: ApiClient, run: Run) -> None:
    """Why a run succeeded before its last step: the last word of its history."""
    moves = cached.events(client, run, kinds=("state",))
    if moves:
        st.info(notices.plain(str(moves[-1].payload.get("reason", ""))), icon=":material/flag:")
