"""Queued runs: their order, and why no connected worker can take them, each reason once however many runs wait for it."""

from collections.abc import Sequence

import streamlit as st

from backend.schemas import RunSummary
from dashboard import notices

_SHOWN = 3


def in_line(runs: Sequence[RunSummary]) -> list[RunSummary]:
    """The queued ones, the next one first: by priority, then by age, as the API counts a run's `queue_position`."""
    queued = (run for run in runs if run.state == "queued")
    # Runs that were made together share their time; their ids are in the order in which they were made.
    return sorted(queued, key=lambda run: (-run.priority, run.created_at, run.id))


def reasons(runs: Sequence[RunSummary]) -> dict[str, list[str]]:
    """Names of the runs by why they wait."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.waits_because:
            found.setdefault(run.waits_because, []).append(run.name)
    return found


def notices_of(runs: Sequence[RunSummary]) -> None:
    """A warning for each of the first reasons."""
    known = reasons(runs)
    for reason, names in list(known.items())[:_SHOWN]:
        who = f"{names[0]} waits" if len(names) == 1 else f"{names[0]} and {len(names) - 1} more runs wait"
        st.warning(notices.plain(f"{who}: {reason}"), icon=":material/hourglass_disabled:")
    if len(known) > _SHOWN:
        st.caption(f"{len(known) - _SHOWN} more reasons; each run's page says its own.")
