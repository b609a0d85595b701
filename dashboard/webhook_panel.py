"""The addresses that alerts are sent to: how that went, a test, a new secret, and a way to add one."""

from typing import Any

import pandas as pd
import streamlit as st

from backend.alerts import TEST, CreatedWebhook, Delivery, Webhook
from dashboard import cached, notices
from dashboard.api_client import ApiClient
from dashboard.api_errors import ApiError, Invalid
from dashboard.quantities import age_text, wait_text

_SHOWN = "webhook-secret"
"""The webhook whose secret is shown once, as it was made or changed."""
_FORM = "number-of-webhook-form"
_FIRST_TRY_SECONDS, _NEXT_TRY_SECONDS = 2, 10
"""How often the page asks for the outcome of a test: while its first try is awaited, and behind that."""


def show(client: ApiClient) -> None:
    """Everything about webhooks that the person may see."""
    me = cached.me(client)
    if not me.may("operator"):
        st.caption("Operators see where alerts are sent.")
        return
    may_change = me.may("admin")
    for webhook in client.webhooks():
        _webhook(client, webhook, may_change=may_change)
    shown: CreatedWebhook | None = st.session_state.get(_SHOWN)
    if shown is not None:
        _secret(shown)
    _form(client, may_change=may_change)


def _secret(webhook: CreatedWebhook) -> None:
    """Until the person says that they have it: the page draws itself anew when a test has arrived."""
    with st.container(border=True):
        st.success(
            f"This secret signs what is sent to **{notices.plain(webhook.name)}** from now on; it is not shown again:",
            icon=":material/key:",
        )
        st.code(webhook.secret, language=None)
        if st.button("I have kept it", icon=":material/done:", key="secret-kept"):
            st.session_state.pop(_SHOWN)
            st.rerun()


def _form(client: ApiClient, *, may_change: bool) -> None:
    # The fields get another name when an address was added, and so are empty again.
    number = st.session_state.setdefault(_FORM, 0)
    with st.form("new-webhook", clear_on_submit=False, border=True):
        st.markdown("**Send alerts to an address**")
        name = st.text_input("Name", placeholder="Slack, #training", key=f"webhook-name-{number}")
        url = st.text_input(
            "Address (https)", type="password", key=f"webhook-url-{number}",
            help="An incoming webhook of Slack or Discord, or a program of yours. It is kept and not shown again.",
        )  # fmt: skip
        told = None if may_change else "Only an admin may set addresses."
        if not st.form_submit_button("Add", icon=":material/add:", disabled=not may_change, help=told):
            return
    try:
        st.session_state[_SHOWN] = client.create_webhook(name, url)
    except ApiError as error:
        found = [one.message for one in error.findings] if isinstance(error, Invalid) else []
        st.error(notices.plain(" ".join(found) or error.message), icon=":material/error:")
        return
    st.session_state[_FORM] += 1
    st.rerun()


def _webhook(client: ApiClient, webhook: Webhook, *, may_change: bool) -> None:
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{notices.plain(webhook.name)}**", width="content")
            waiting = f" · {webhook.num_pending} waiting" if webhook.num_pending else ""
            st.caption(notices.plain(f"{webhook.host}{waiting}"), width="content")
        if may_change:
            _actions(client, webhook)
        sent = client.deliveries(webhook.id)
        every = _refresh_seconds(_test_of(sent))
        st.fragment(_deliveries, run_every=every)(client, webhook, sent, every)


def _actions(client: ApiClient, webhook: Webhook) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        tests = st.button("Send a test alert", icon=":material/send:", key=f"test-{webhook.id}")
        with st.popover("Change the secret", icon=":material/key:"):
            st.markdown(
                "Alerts are then signed with a new secret, which is shown once. The present one is worth nothing any more: whoever "
                "checks signatures with it refuses alerts until it has the new one."
            )
            rotates = st.button(
                "Change it now", icon=":material/autorenew:", type="primary", key=f"rotate-{webhook.id}"
            )
        deletes = st.button("Delete", icon=":material/delete:", type="tertiary", key=f"delete-{webhook.id}")
    if not (tests or rotates or deletes):
        return
    try:
        if tests:
            client.test_webhook(webhook.id)
        elif rotates:
            st.session_state[_SHOWN] = client.rotate_webhook_secret(webhook.id)
        else:
            client.delete_webhook(webhook.id)
    except ApiError as error:
        st.error(notices.plain(error.message), icon=":material/error:")
    else:
        st.rerun()


def _deliveries(client: ApiClient, webhook: Webhook, known: list[Delivery], every: int | None) -> None:
    """What was sent, below how the test went; asked for again every so many seconds while that is not known."""
    with notices.problems_shown():
        sent = known if every is None else client.deliveries(webhook.id)
    test = _test_of(sent)
    if _refresh_seconds(test) != every:
        st.rerun()  # to ask less often, or no more
    if test is not None:
        _test_result(test)
    rows: list[dict[str, Any]] = [
        {
            "run": one.run_name or "–", "alert": one.rule.replace("_", " "), "state": one.state, "attempts": one.attempts,
            "answer": "–" if one.status is None else str(one.status), "why": one.error, "sent": age_text(one.sent_at),
        }
        for one in sent
    ]  # fmt: skip
    if rows:
        st.dataframe(pd.DataFrame(rows), hide_index=True, key=f"deliveries-{webhook.id}")
    else:
        st.caption("Nothing was sent yet.")


def _test_of(sent: list[Delivery]) -> Delivery | None:
    """The last test; there is never more than one."""
    return next((one for one in sent if one.rule == TEST), None)


def _refresh_seconds(test: Delivery | None) -> int | None:
    if test is None or test.state != "pending":
        return None
    return _NEXT_TRY_SECONDS if test.error else _FIRST_TRY_SECONDS


def _test_result(test: Delivery) -> None:
    """How the last test went, in a sentence."""
    asked = age_text(test.time)
    if test.state == "sent":
        st.success(f"The test of {asked} was received: the answer was {test.status}.", icon=":material/check_circle:")
    elif test.state == "failed":
        st.error(
            notices.plain(f"The test of {asked} was given up after {test.attempts} attempts. {test.error}"),
            icon=":material/error:",
        )
    elif test.error:
        st.error(
            notices.plain(
                f"The test of {asked} did not arrive. {test.error} It is tried again {wait_text(test.next_at)}."
            ),
            icon=":material/error:",
        )
    else:
        st.info(
            "The test is on its way; the control process sends within ten seconds.", icon=":material/schedule_send:"
        )
