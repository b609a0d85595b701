"""The rules of alerts, as a form."""

import streamlit as st

from backend.alerts import AlertRules
from dashboard import notices
from dashboard.api_client import ApiClient
from dashboard.api_errors import Invalid
from dashboard.spec_form import DrawnForm, draw_field
from dashboard.spec_schema import form_fields


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
