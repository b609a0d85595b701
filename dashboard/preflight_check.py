"""Checking a spec on a worker before the start: models, tokenizers, context, data. Findings go to the form's fields."""

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from backend.schemas import Preflight
from dashboard import notices, prompt_preview, rights
from dashboard.api_client import ApiClient
from engine.findings import Finding

_POLL_SECONDS = 1.0
_KEY = "preflight"
_PREVIEWS = "previews"


def _print_of(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True)


def _result_for(document: Mapping[str, Any]) -> Preflight | None:
    """The check of exactly this document; a check of an earlier draft says nothing."""
    stored = st.session_state.get(_KEY)
    return stored["result"] if stored and stored["document"] == _print_of(document) else None


def preflight_findings(document: Mapping[str, Any]) -> list[Finding]:
    """What the last check of this very document found; empty when it was changed since."""
    result = _result_for(document)
    return list(result.findings) if result else []


def show_preflight(client: ApiClient, document: dict[str, Any], *, is_valid: bool) -> None:
    refusal = rights.refusal(client)
    clicked = st.button(
        "Check on a worker", icon=":material/fact_check:", disabled=not is_valid or refusal is not None, width="stretch",
        help=refusal or "Opens the models and reads the data on a worker, as a run's first phase does; takes some seconds.",
        key="check",
    )  # fmt: skip
    if clicked:
        st.session_state[_KEY] = {"document": _print_of(document), "result": client.start_preflight(document)}
    result = _result_for(document)
    if result is None:
        return
    if result.state in ("queued", "running"):
        st.fragment(_poll, run_every=_POLL_SECONDS)(client)
    elif result.state == "failed":
        st.error("The check itself failed; see the worker's log.", icon=":material/error:")
    elif not any(one.severity == "error" for one in result.findings):
        st.success("A worker has opened models and data: nothing stands in the way.", icon=":material/check_circle:")
    if result.facts:
        show_facts(result.facts)


def show_facts(facts: Mapping[str, Any]) -> None:
    """A table of the facts, and the first prompts as both models see them."""
    with st.expander("What the worker found", icon=":material/table:"):
        rows = [
            {"what": name.replace("_", " ").replace(" bytes", ""), "found": fact_in_words(name, value)}
            for name, value in facts.items()
            if name != _PREVIEWS
        ]
        st.dataframe(pd.DataFrame(rows), hide_index=True, key="preflight-facts")
    if facts.get(_PREVIEWS):
        with st.expander("The first prompts as both models see them", icon=":material/forum:"):
            prompt_preview.show(facts[_PREVIEWS])


def fact_in_words(name: str, value: Any) -> str:
    """A fact with its unit: bytes in GB, FLOPs in powers of ten, counts with separators."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if name.endswith("_bytes"):
        return f"{value / 1e9:.2f} GB"
    if "flops" in name:
        return f"{value:.2e}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _poll(client: ApiClient) -> None:
    stored = st.session_state[_KEY]
    with notices.problems_shown():
        stored["result"] = client.preflight(stored["result"].id)
    if stored["result"].state in ("done", "failed"):
        st.rerun()
    waiting = "waiting for a worker" if stored["result"].state == "queued" else "checking"
    st.caption(f":material/hourglass_top: {waiting}…")
