"""The rules of alerts and the addresses that they are sent to."""

from typing import Any

import pandas as pd
import streamlit as st

from backend.alerts import AlertRules, Webhook
from dashboard import cached, notices
from dashboard.api_client import ApiClient
from dashboard.api_errors import ApiError, Invalid
from dashboard.quantities import age_text
from dashboard.spec_form import DrawnForm, draw_field
from dashboard.spec_schema import form_fields

_SECRET = "webhook-secret"  # where it is shown once


def rules(client: ApiClient, refusal: str | None) -> None:
    """The project's rules as a form made from their schema."""
    form = DrawnForm()
    stored = client.alert_rules().model_dump(mode="json")
    fields = form_fields(AlertRules.model_json_schema())
    for start in range(0, len(fields), 2):
        for column, field in zip(st.columns(2, gap="medium"), fields[start : start + 2], strict=False):
            with column:
                draw_field(form, field, stored, "alert-rules")
    if not st.button(
        "Save the rules", icon=":material/save:", key="save-rules", disabled=refusal is not None, help=refusal
    ):
        return
    try:
        client.set_alert_rules(form.document)
        st.success("The rules are saved; they hold from now on.", icon=":material/check_circle:")
    except Invalid as error:
        form.show_notes(error.findings, {})
        st.error(notices.plain(error.message), icon=":material/error:")


def webhooks(client: ApiClient) -> None:
    """Where alerts are sent, how that went, and a way to add an address."""
    me = cached.me(client)
    if not me.may("operator"):
        st.caption("Operators see where alerts are sent.")
        return
    may_change = me.may("admin")
    for webhook in client.webhooks():
        _webhook(client, webhook, may_change=may_change)
    if _SECRET in st.session_state:
        st.success("The webhook is set. This secret signs what is sent; it is not shown again:", icon=":material/key:")
        st.code(st.session_state.pop(_SECRET), language=None)
    with st.form("new-webhook", clear_on_submit=False, border=True):
        st.markdown("**Send alerts to an address**")
        name = st.text_input("Name", placeholder="Slack, #training", key="webhook-name")
        url = st.text_input(
            "Address (https)", type="password", key="webhook-url",
            help="An incoming webhook of Slack or Discord, or a program of yours. It is kept and not shown again.",
        )  # fmt: skip
        told = None if may_change else "Only an admin may set addresses."
        if not st.form_submit_button("Add", icon=":material/add:", disabled=not may_change, help=told):
            return
    try:
        made = client.create_webhook(name, url)
    except ApiError as error:
        found = [one.message for one in error.findings] if isinstance(error, Invalid) else []
        st.error(notices.plain(" ".join(found) or error.message), icon=":material/error:")
        return
    st.session_state[_SECRET] = made.secret
    st.rerun()


def _webhook(client: ApiClient, webhook: Webhook, *, may_change: bool) -> None:
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{notices.plain(webhook.name)}**", width="content")
            waiting = f" · {webhook.num_pending} waiting" if webhook.num_pending else ""
            st.caption(notices.plain(f"{webhook.host}{waiting}"), width="content")
            if may_change and st.button(
                "Delete", icon=":material/delete:", type="tertiary", key=f"delete-{webhook.id}"
            ):
                client.delete_webhook(webhook.id)
                st.rerun()
        rows: list[dict[str, Any]] = [
            {
                "run": one.run_name, "alert": one.rule.replace("_", " "), "state": one.state, "attempts": one.attempts,
                "answer": "–" if one.status is None else str(one.status), "why": one.error, "sent": age_text(one.sent_at),
            }
            for one in client.deliveries(webhook.id)
        ]  # fmt: skip
        if rows:
            st.dataframe(pd.DataFrame(rows), hide_index=True, key=f"deliveries-{webhook.id}")
        else:
            st.caption("Nothing was sent yet.")
