"""Arms and seeds: what makes an experiment of a spec."""

from collections.abc import Sequence
from typing import Any, Literal

import streamlit as st

from backend.schemas import Variant
from dashboard import notices
from dashboard.arms import experiment_document, grid_arms, prefix_arms, seeds_of
from dashboard.needs_form import draw_needs
from dashboard.spec_form import DrawnForm
from dashboard.spec_schema import FormField

_ONE, _LENGTHS, _GRID, _PRESET_ARMS = "one run", "several prefix lengths", "values of fields", "the preset's arms"
_MAX_NAMED = 12
_KEPT: Literal["session"] = "session"  # past a look at another page, and while another choice of arms hides a widget
_SET_BESIDE = frozenset({"name", "seed"})


def draw_experiment(form: DrawnForm, fields: Sequence[FormField]) -> tuple[dict[str, Any] | None, str]:
    """The body that creates the experiment, or None with the sentence that says what is wrong with it."""
    state = st.session_state["form"]
    st.header("Arms and seeds", anchor=False)
    origin = state["origin"]
    choices = [_ONE, _LENGTHS, _GRID] + ([f"{_PRESET_ARMS} ({len(state['arms'])})"] if state["arms"] else [])
    mode = st.segmented_control(
        "Arms", choices, default=choices[-1] if state["arms"] else _ONE, required=True, key=f"arms-mode-{origin}", persist_state=_KEPT,
        help="Several arms make an experiment: the same spec with one thing changed in each, compared on one page.",
    )  # fmt: skip
    left, right = st.columns(2, gap="medium")
    seeds_text = right.text_input(
        "Seeds", str(state["seed"].get("seed", 0)), key=f"seeds-{origin}", persist_state=_KEPT,
        help="Every arm runs once with each: 0, 1, 2 or 0-4.",
    )  # fmt: skip
    arms: list[Variant] = []
    title = str(form.document.get("name") or "")
    try:
        if mode == _LENGTHS:
            lengths = left.text_input(
                "Prefix lengths (tokens)", "8, 16, full", key=f"lengths-{origin}", persist_state=_KEPT
            )
            arms = prefix_arms(lengths)
        elif mode == _GRID:
            arms = grid_arms(_draw_grid(fields, origin))
        elif mode != _ONE:
            arms = state["arms"]
        seeds = seeds_of(seeds_text)
    except ValueError as error:
        st.error(notices.plain(str(error)))
        return None, str(error)
    needs, problem = draw_needs(state["labels"], origin)
    if needs is None:
        return None, problem
    # A single run's experiment is called like the run unless told otherwise.
    name = left.text_input(
        "Name of the experiment", state["title"] if arms else "", key=f"experiment-{mode}-{origin}", placeholder=title,
        persist_state=_KEPT,
    )  # fmt: skip
    note = st.text_area("The question it asks (optional)", key=f"note-{origin}", height=80, persist_state=_KEPT)
    if arms:
        times = f", each with {len(seeds)} seeds" if len(seeds) > 1 else ""
        named = ", ".join(arm.name for arm in arms[:_MAX_NAMED]) + (", …" if len(arms) > _MAX_NAMED else "")
        st.caption(notices.plain(f"{len(arms) * len(seeds)} runs: {named}{times}."))
    body = experiment_document(name=name or title, note=note, base=form.document, arms=arms, seeds=seeds)
    return body | {"needs": needs}, ""


def _draw_grid(fields: Sequence[FormField], origin: int) -> dict[str, str]:
    """The chosen fields, each with its values as typed."""
    paths = [path for field in fields for path in _paths(field) if path not in _SET_BESIDE]
    chosen = st.multiselect(
        "Fields to vary", list(dict.fromkeys(paths)), key=f"grid-{origin}", max_selections=4, persist_state=_KEPT,
        placeholder="such as optimizer.learning_rate", help="Each combination of their values is an arm.",
    )  # fmt: skip
    return {
        path: st.text_input(
            f"Values of {path}", key=f"grid-{origin}-{path}", placeholder="separated by commas", persist_state=_KEPT
        )
        for path in chosen
    }


def _paths(field: FormField) -> list[str]:
    """Dotted paths of the single values below a field, those of all its alternatives included."""
    inner = [*field.fields, *(one for member in field.members.values() for one in member.fields)]
    if field.kind in ("group", "union"):
        return [path for one in inner for path in _paths(one)]
    return [] if field.kind in ("list", "table") else [field.path]
