"""Alerts on every page: a toast when one is raised while the page is open, and how many nobody has dismissed."""

import streamlit as st

from backend.alerts import Alert, Severity
from dashboard import cached, notices
from dashboard.api_client import ApiClient
from dashboard.api_errors import ApiError

_REFRESH_SECONDS = 10
_MAX_TOASTS = 3  # at once; the rest is in the list
_SEEN = "alerts-seen"
ICONS: dict[Severity, str] = {
    "info": ":material/check_circle:",
    "warning": ":material/warning:",
    "error": ":material/error:",
}


@st.fragment(run_every=_REFRESH_SECONDS)
def toasts(client: ApiClient) -> None:
    """Show each new alert once in this session; those from before it began stand in the list."""
    try:
        newest = cached.alerts(client).items
    except ApiError:
        return  # the page itself says so
    seen = st.session_state.get(_SEEN)
    st.session_state[_SEEN] = max([*(one.id for one in newest), seen or ""])  # ids grow with time
    if seen is None:
        return
    fresh = [one for one in newest if one.id > seen]
    for one in reversed(fresh[:_MAX_TOASTS]):
        st.toast(
            f"**{notices.plain(one.run_name)}**  \n{notices.plain(one.message)}",
            icon=ICONS[one.severity],
            duration="long",
        )
    if len(fresh) > _MAX_TOASTS:
        st.toast(f"{len(fresh) - _MAX_TOASTS} more alerts are in the list of alerts.", icon=":material/notifications:")


def line(alert: Alert) -> None:
    """One alert with a link to its run."""
    with st.container(horizontal=True, vertical_alignment="center"):
        colour = {"info": "green", "warning": "orange", "error": "red"}[alert.severity]
        st.badge(alert.rule.replace("_", " "), icon=ICONS[alert.severity], color=colour)  # type: ignore[arg-type]
        st.page_link("views/run.py", label=notices.plain(alert.run_name), query_params={"id": alert.run_id})
    st.markdown(notices.plain(alert.message))


def strip(client: ApiClient) -> None:
    """How many alerts are open, with the newest that is bad news and a way to all of them; nothing when there is none."""
    page = cached.alerts(client)
    bad = [one for one in page.items if one.severity != "info"]
    if not bad:
        return
    with st.container(border=True):
        line(bad[0])
        count = f"All {page.num_open} open alerts" if page.num_open > 1 else "The open alert"
        st.page_link("views/alerts.py", label=count, icon=":material/notifications:")
