"""Alerts: what runs had to say, by which rules, and where it is sent."""

import streamlit as st

from dashboard import alert_notices, alert_settings, cached, notices, rights, webhook_panel
from dashboard.api_client import ApiClient
from dashboard.quantities import age_text

_REFRESH_SECONDS = 5


@st.fragment(run_every=_REFRESH_SECONDS)
def listed(client: ApiClient, *, is_open: bool) -> None:
    """The alerts, newest first."""
    with notices.problems_shown():
        page = cached.alerts(client, is_open=is_open)
        refusal = rights.refusal(client)
    if not page.items:
        notices.empty(
            "No open alert" if is_open else "No alert yet",
            "Nothing went wrong that the rules below look for.",
            icon=":material/notifications_off:",
        )
        return
    if is_open and page.num_open > 1:
        every = (
            f"Dismiss {'all' if len(page.items) == page.num_open else f'these {len(page.items)} of'} {page.num_open}"
        )
        if st.button(every, icon=":material/done_all:", key="dismiss-all", disabled=refusal is not None, help=refusal):
            dismiss(client, [one.id for one in page.items])
    for one in page.items:
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
