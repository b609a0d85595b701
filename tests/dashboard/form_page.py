"""A page with a form for every kind of leaf, for tests/dashboard/test_form_leaves.py."""

import streamlit as st

from dashboard.spec_form import draw_form
from dashboard.spec_schema import form_fields
from engine.frozen import Frozen


class Stage(Frozen):
    """A row."""

    steps: int
    """How many steps."""
    tokens: int
    """How many tokens."""
    note: str | None = None
    """Anything, or empty."""


class Leaves(Frozen):
    """Every kind of leaf."""

    flag: bool = True
    """On or off."""
    wish: bool | None = None
    """Yes, no, or nobody said."""
    patience: int | None = 5
    """A number, or empty."""
    limit: float | None = 0.5
    """Another one."""
    lengths: list[int] = [16, 64]
    """Numbers."""
    modules: list[str] | None = None
    """Words, or empty."""
    stages: list[Stage] = [Stage(steps=2, tokens=8)]
    """Rows."""


fields = form_fields(Leaves.model_json_schema())
form = draw_form(fields, st.session_state.get("given", Leaves().model_dump(mode="json")), {}, 0)
st.session_state["document"] = form.document
