"""The form of a run with one kind of each union, for tests/dashboard/test_form_leaves.py; `turn` says which."""

from collections.abc import Iterable
from typing import Any

import streamlit as st

from dashboard.spec_form import draw_form
from dashboard.spec_schema import FormField, form_fields, put_at
from engine.spec import RunSpec


def choose(fields: Iterable[FormField], turn: int, seed: dict[str, Any]) -> None:
    """Put the turn-th kind of each union into the seed, those of the unions inside it too."""
    for one in fields:
        if one.kind == "union":
            kind = list(one.members)[turn % len(one.members)]
            put_at(seed, one.path, {"kind": kind})
            choose(one.members[kind].fields, turn, seed)
        elif one.kind == "group":
            choose(one.fields, turn, seed)


fields = form_fields(RunSpec.model_json_schema())
chosen: dict[str, Any] = {}
choose(fields, st.session_state["turn"], chosen)
form = draw_form(fields, chosen, {}, 0)
st.session_state["document"] = form.document
st.session_state["chosen"] = chosen
