"""What a run asks of its worker beside its spec: labels, and another amount of memory than the estimate's."""

from typing import Any

import streamlit as st
from pydantic import ValidationError

from backend.needs import Needs
from dashboard import notices

_GB = 1e9


def draw_needs(labels: list[str], origin: int) -> tuple[dict[str, Any] | None, str]:
    """The `needs` of the experiment, or None with the sentence that says what is wrong.

    `labels` are those to begin with; what is typed is kept for the session, until another `origin` starts afresh.
    """
    left, right = st.columns(2, gap="medium")
    text = left.text_input(
        "Worker labels (optional)", ", ".join(labels), key=f"labels-{origin}", persist_state="session", placeholder="any worker",
        help="Only workers that have all of these take the runs, such as a100, lab-2. A worker gets its own by "
        "INCIPIT_WORKER_LABELS; the page System shows them.",
    )  # fmt: skip
    memory_gb = right.number_input(
        "Memory of the worker in GB (optional)", min_value=0.0, value=None, key=f"memory-{origin}", persist_state="session",
        placeholder="as estimated",
        help="A worker with less does not take the runs. 0 lets any worker try, whatever the estimate says.",
    )  # fmt: skip
    try:
        return needs_document(text, memory_gb), ""
    except ValueError as error:
        st.error(notices.plain(str(error)))
        return None, str(error)


def needs_document(labels: str, memory_gb: float | None) -> dict[str, Any]:
    """Of text such as `a100, lab-2`; raises ValueError with a sentence for people."""
    named = labels.replace(",", " ").split()
    memory_bytes = None if memory_gb is None else round(memory_gb * _GB)
    try:
        return Needs(labels=named, memory_bytes=memory_bytes).model_dump(mode="json")
    except ValidationError as error:
        wrong = error.errors()[0]
        if wrong["type"] == "string_pattern_mismatch":
            raise ValueError(
                f"Worker labels has {str(wrong['input'])[:80]!r}, but a label has at most 63 of a-z, 0-9, dot, dash and underscore "
                "and begins with a letter or digit; correct it."
            ) from None
        raise ValueError(f"Worker labels: {wrong['msg'].removeprefix('Value error, ')}; correct them.") from None
