"""The Idempotency-Key of a form: pressing Start again after a lost answer makes no second experiment."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import streamlit as st

_KEY = "submission"


def submission_key(document: Mapping[str, Any]) -> str:
    """The key of this very document; a changed one is a new request and gets another."""
    text = json.dumps(document, sort_keys=True)
    kept = st.session_state.get(_KEY)
    if kept is None or kept["document"] != text:
        kept = st.session_state[_KEY] = {"document": text, "key": str(uuid4())}
    key: str = kept["key"]
    return key


def forget_submission() -> None:
    """It was answered: the same document from now on means a new experiment."""
    st.session_state.pop(_KEY, None)
