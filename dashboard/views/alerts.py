"""Alerts: what runs had to say, by which rules, and where it is sent."""

import streamlit as st

from backend.alerts import Alert
from dashboard import alert_notices, alert_settings, cached, notices, rights, webhook_panel
from dashboard.api_client import ApiClient
from dashboard.quantities import age_text

_REFRESH_SECONDS = 5
_OLDER = "alerts-older-pages"


@st.fragment(run_every=_REFRESH_SECONDS)
def listed(client: ApiClient, *, is_open: bool) -> None:
    """The alerts, newest first."""
    with notices.problems_shown():
        page = cached.alerts(client, is_open=is_open)
        items, is_cut = older_too(client, page.items, page.next_cursor, is_open=is_open)
        refusal = rights.refusal(client)
    if not items:
        notices.empty(
            "No open alert" if is_open else "No alert yet",
            "Nothing went wrong that the rules below look for.",
            icon=":material/notifications_off:",
        )
        return
    if is_open and page.num_open > 1:
        every = f"Dismiss {'all' if len(items) == page.num_open else f'these {len(items)} of'} {page.num_open}"
        if st.button(every, icon=":material/done_all:", key="dismiss-all", disabled=refusal is not None, help=refusal):
            dismiss(client, [one.id for one in items])
    for one in items:
        with st.container(border=True):
            alert_notices.line(one)
            with st.container(horizontal=True, vertical_alignment="center"):
                dismissed = (
                    f" · dismissed by {one.dismissed_by} {age_text(one.dismissed_at)}" if one.dismissed_at else ""
                )
                st.caption(notices.plain(f"{age_text(one.time)}{dismissed}"), width="content")
                if one.dismissed_at is None and st.button(
                    "Dismiss",
                    key=f"dismiss-{one.id}",
                    type="tertiary",
                    icon=":material/done:",
                    disabled=refusal is not None,
                    help=refusal,
                ):
                    dismiss(client, [one.id])
    if is_cut:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(f"The newest {len(items):,}.", width="content")
            st.button("Show older ones", icon=":material/expand_more:", key="older-alerts", on_click=show_older)


def older_too(client: ApiClient, items: list[Alert], cursor: str | None, *, is_open: bool) -> tuple[list[Alert], bool]:
    """The first page and as many behind it as were asked for, and whether there may be more."""
    for _ in range(st.session_state.get(_OLDER, 0)):
        if cursor is None:
            break
        page = cached.alerts(client, is_open=is_open, cursor=cursor)
        items, cursor = [*items, *page.items], page.next_cursor
    return items, cursor is not None


def show_older() -> None:
    st.session_state[_OLDER] = st.session_state.get(_OLDER, 0) + 1


def dismiss(client: ApiClient, ids: list[str]) -> None:
    """Take alerts out of the open ones."""
    with notices.problems_shown():
        for id in ids:
            client.dismiss_alert(id)
    cached.alerts.clear()
    st.rerun()


st.title("Alerts", anchor=False)
st.caption("What runs have to say without being looked at. A dismissed alert is gone for everybody in the project.")
client = cached.api()
shown = st.segmented_control(
    "Alerts",
    ["open", "all"],
    default="open",
    required=True,
    key="alerts-shown",
    bind="query-params",
    label_visibility="collapsed",
)
listed(client, is_open=shown == "open")
with notices.problems_shown():
    with st.expander("Rules: of what you are told", icon=":material/rule:"):
        alert_settings.rules(client, rights.refusal(client))
    with st.expander("Webhooks: where alerts are sent", icon=":material/webhook:"):
        webhook_panel.show(client)
