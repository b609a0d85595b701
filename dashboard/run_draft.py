"""What is being edited on New run: where it came from, its document, and how to go on with it after a look at another page."""

import json
from collections.abc import Sequence
from typing import Any

import streamlit as st

from backend.expansion import with_changes
from backend.needs import RunNeeds
from backend.schemas import Preset, Variant
from dashboard import address, cached, notices
from dashboard.api_client import ApiClient


def load(
    document: dict[str, Any],
    source: str,
    arms: Sequence[Variant] = (),
    title: str = "",
    parent: dict[str, Any] | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Start the form afresh from a document; changes are shown against `parent`, which is the document itself by default.

    A new `revision` makes the spec's widgets afresh, a new `origin` those beside the spec too: seeds, arms, question, needs.
    """
    # Origins are counted past a start, which forgets the form: what is kept of an earlier one must not come back.
    st.session_state["form-origin"] = st.session_state.get("form-origin", 0) + 1
    st.session_state["form"] = {
        "seed": document, "preset": document if parent is None else parent, "source": source, "arms": list(arms), "title": title,
        "labels": list(labels), "origin": st.session_state["form-origin"],
        "revision": st.session_state.get("form", {}).get("revision", 0) + 1,
    }  # fmt: skip


def go_on(document: dict[str, Any]) -> None:
    """Draw the spec's widgets afresh from what was edited; what stands beside the spec stays."""
    state = st.session_state["form"]
    state["seed"], state["revision"] = document, state["revision"] + 1
    state.pop("draft", None)  # until the new widgets make one


def first_preset(presets: list[Preset]) -> Preset | None:
    """One whose models come with Incipit, if there is one: it can be started at once."""
    ready = (one for one in presets if one.spec.student.path.startswith("builtin:"))
    return next(ready, presets[0] if presets else None)


def load_asked(client: ApiClient, presets: list[Preset]) -> None:
    """What the URL asks for (`from` a run, or a `preset`), once; else what was being edited, else the first preset.

    With `from` the URL may `set` fields, a JSON object of dotted paths: so a failed run's page offers what may help.
    """
    run_id, name, changes = address.asked("from"), address.asked("preset"), address.asked("set")
    preset = next((one for one in presets if one.name == name), None)
    if name is not None and preset is None:
        address.keep("preset", None)  # else it would be asked for at every click, and each would reset the form
        st.warning(notices.plain(f"There is no preset {name!r}; choose one below."), icon=":material/link_off:")
    wanted = f"run {run_id}" if run_id else f"preset {preset.name}" if preset else None
    known = st.session_state.get("form")
    if run_id and (known is None or known["source"] != wanted or changes):
        run = cached.run(client, run_id)
        parent = run.spec.model_dump(mode="json")
        # Labels that follow from the spec are no wish: they would stay when the spec no longer asks for them.
        labels = [one for one in run.needs.labels if one not in RunNeeds.stated(run.spec).labels]
        load(changed(client, parent, changes), f"run {run_id}", title=run.experiment_name, parent=parent, labels=labels)
        address.keep("set", None)
    elif known is None or (wanted and known["source"] != wanted):
        preset = preset or first_preset(presets)
        if preset is None:
            load({}, "preset ")
        else:
            load(preset.spec.model_dump(mode="json"), f"preset {preset.name}", preset.variants, preset.title)
    elif f"form-{known['revision']}-name" not in st.session_state and "draft" in known:
        # Back from another page: Streamlit has forgotten the widgets, the draft has not.
        go_on(known["draft"])


def changed(client: ApiClient, parent: dict[str, Any], changes: str | None) -> dict[str, Any]:
    """The parent's document with the changes that an address asks for, or as it is when they do not fit: anybody can write one."""
    if changes is None:
        return parent
    try:
        wanted = json.loads(changes)
        document = with_changes(parent, wanted) if isinstance(wanted, dict) else {}
        is_fit = bool(document) and not client.validate(document)
    except (ValueError, RecursionError):
        is_fit = False
    if not is_fit:
        st.warning(
            "The changes that this address asks for do not fit the run; it is shown as it was.",
            icon=":material/link_off:",
        )
        return parent
    return document
