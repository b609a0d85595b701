"""New run: a form made from the spec's schema, checked while it is filled in, with an estimate before the start."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import streamlit as st

from backend.schemas import Preset, Variant
from dashboard import address, cached, estimate_card, notices, rights
from dashboard.api_client import ApiClient
from dashboard.api_errors import Invalid
from dashboard.arms import experiment_document, prefix_arms, seeds_of
from dashboard.preflight_check import preflight_findings, show_preflight
from dashboard.spec_form import DrawnForm, draw_form
from dashboard.spec_schema import form_fields
from dashboard.submission import forget_submission, submission_key
from engine.findings import Finding

_ONE, _LENGTHS, _PRESET_ARMS = "one run", "several prefix lengths", "the preset's arms"


def load(document: dict[str, Any], source: str, arms: Sequence[Variant] = (), title: str = "") -> None:
    """Start the form afresh from a document."""
    st.session_state["form"] = {
        "seed": document, "preset": document, "source": source, "arms": list(arms), "title": title,
        "revision": st.session_state.get("form", {}).get("revision", 0) + 1,
    }  # fmt: skip


def first_preset(presets: list[Preset]) -> Preset | None:
    """One whose models come with Incipit, if there is one: it can be started at once."""
    ready = (one for one in presets if one.spec.student.path.startswith("builtin:"))
    return next(ready, presets[0] if presets else None)


def load_asked(client: ApiClient, presets: list[Preset]) -> None:
    """What the URL asks for (`from` a run, or a `preset`), once; else what was being edited, else the first preset."""
    run_id, name = address.asked("from"), address.asked("preset")
    wanted = f"run {run_id}" if run_id else f"preset {name}" if name else None
    known = st.session_state.get("form")
    if run_id and (known is None or known["source"] != wanted):
        run = cached.run(client, run_id)
        load(run.spec.model_dump(mode="json"), f"run {run_id}", title=run.experiment_name)
    elif known is None or (wanted and known["source"] != wanted):
        preset = next((one for one in presets if one.name == name), None) or first_preset(presets)
        if preset is None:
            load({}, wanted or "preset ")
        else:
            load(preset.spec.model_dump(mode="json"), f"preset {preset.name}", preset.variants, preset.title)
    elif f"form-{known['revision']}-name" not in st.session_state and "draft" in known:
        # Back from another page: Streamlit has forgotten the widgets, the draft has not.
        known["seed"], known["revision"] = known["draft"], known["revision"] + 1


def choose_start(presets: list[Preset]) -> None:
    by_name = {one.name: one for one in presets}
    source = str(st.session_state["form"]["source"])
    kind, _, name = source.partition(" ")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        at = list(by_name).index(name) if name in by_name else None
        chosen = st.selectbox(
            "Start from", list(by_name), index=at, format_func=lambda one: by_name[one].title, key=f"preset-choice-{source}", width=360,
            placeholder=f"{kind} {name}",
        )  # fmt: skip
        with st.popover("Import or export", icon=":material/swap_vert:"):
            import_export()
    if chosen is not None and chosen != name:
        preset = by_name[chosen]
        load(preset.spec.model_dump(mode="json"), f"preset {chosen}", preset.variants, preset.title)
        address.keep("from", None)
        address.keep("preset", chosen)
        st.rerun()
    if chosen is not None:
        st.caption(notices.plain(by_name[chosen].description))


def import_export() -> None:
    draft = st.session_state["form"].get("draft", {})
    st.download_button(
        "Export this spec", data=json.dumps(draft, indent=2), file_name=f"{draft.get('name') or 'spec'}.json", mime="application/json",
        icon=":material/download:", on_click="ignore",
    )  # fmt: skip
    file = st.file_uploader("Import a spec (JSON)", type="json", key="import")
    digest = None if file is None else hashlib.sha256(file.getvalue()).hexdigest()
    if file is None or st.session_state.get("imported") == digest:
        st.session_state["imported"] = digest  # a file that was taken away may come again
        return
    try:
        document = json.loads(file.getvalue())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        st.error(notices.plain(f"{file.name} is not JSON: {error}. Nothing was changed."))
        return
    findings = cached.api().validate(document)
    if findings:
        st.error(notices.plain(f"{file.name} is not a valid spec; nothing was changed."))
        for finding in findings:
            st.markdown(f"- {notices.plain(finding.message)}")
        return
    load(document, f"file {file.name}")
    st.session_state["imported"] = digest
    address.keep("from", None)
    address.keep("preset", None)
    st.rerun()


def draw_experiment(form: DrawnForm) -> tuple[dict[str, Any] | None, str]:
    """The body that creates the experiment, or None with the sentence that says what is wrong with it."""
    state = st.session_state["form"]
    st.subheader("Arms and seeds", anchor=False)
    revision = state["revision"]
    choices = [_ONE, _LENGTHS] + ([f"{_PRESET_ARMS} ({len(state['arms'])})"] if state["arms"] else [])
    mode = st.segmented_control(
        "Arms", choices, default=choices[-1] if state["arms"] else _ONE, required=True, key=f"arms-mode-{revision}",
        help="Several arms make an experiment: the same spec with one thing changed in each, compared on one page.",
    )  # fmt: skip
    left, right = st.columns(2, gap="medium")
    seeds_text = right.text_input(
        "Seeds", "0", key=f"seeds-{revision}", help="Every arm runs once with each: 0, 1, 2 or 0-4."
    )
    arms: list[Variant] = []
    title = str(form.document.get("name") or "")
    try:
        if mode == _LENGTHS:
            lengths = left.text_input("Prefix lengths (tokens)", "8, 16, full", key=f"lengths-{revision}")
            arms = prefix_arms(lengths)
        elif mode != _ONE:
            arms = state["arms"]
        seeds = seeds_of(seeds_text)
    except ValueError as error:
        st.error(notices.plain(str(error)))
        return None, str(error)
    # A single run's experiment is called like the run unless told otherwise.
    name = left.text_input(
        "Name of the experiment", state["title"] if arms else "", key=f"experiment-{mode}-{revision}", placeholder=title
    )
    note = st.text_area("The question it asks (optional)", key=f"note-{revision}", height=80)
    if arms:
        times = f", each with {len(seeds)} seeds" if len(seeds) > 1 else ""
        st.caption(notices.plain(f"{len(arms) * len(seeds)} runs: {', '.join(arm.name for arm in arms)}{times}."))
    return experiment_document(name=name or title, note=note, base=form.document, arms=arms, seeds=seeds), ""


def show_summary(form: DrawnForm, findings: list[Finding], place: Any) -> None:
    if not findings:
        return
    errors = [one for one in findings if one.severity == "error"]
    with place.container(border=True):
        count = (
            f"{len(errors)} field{'s need' if len(errors) != 1 else ' needs'} a correction"
            if errors
            else "Something to look at"
        )
        st.markdown(f"**:material/rule: {count}**")
        for one in findings:
            label = form.labels.get(form.place_of(one), "The spec")
            st.markdown(f"- **{notices.plain(label)}**: {notices.plain(one.message)}")


def start_button(
    client: ApiClient, form: DrawnForm, findings: list[Finding], body: dict[str, Any] | None, problem: str
) -> None:
    """Starts, or says on its face what is missing."""
    errors = [one for one in findings if one.severity == "error"]
    refusal = rights.refusal(client)
    number = max(1, len(body["variants"])) * len(body["seeds"]) if body else 0
    if refusal is not None:
        label = "Start: needs the role operator"
    elif errors:
        label = f"Start: first correct {form.labels.get(form.place_of(errors[0]), 'the spec').lower()}"
    elif body is None:
        label = "Start: first correct arms and seeds"
    else:
        label = "Start" if number == 1 else f"Start {number} runs"
    ready = body is not None and not errors and refusal is None
    clicked = st.button(
        label,
        type="primary",
        icon=":material/play_arrow:",
        disabled=not ready,
        help=refusal or problem or None,
        width="stretch",
        key="start",
    )
    if not clicked or body is None:
        return
    try:
        created = client.create_experiment(body, idempotency_key=submission_key(body))
    except Invalid as error:
        st.error(notices.plain(error.message), icon=":material/error:")
        for one in error.findings:
            st.markdown(f"- **{notices.plain(one.field or 'experiment')}**: {notices.plain(one.message)}")
        return
    forget_submission()
    st.session_state.pop("form", None)
    runs = client.experiment_runs(created.id)
    if len(runs) == 1:
        st.switch_page("views/run.py", query_params={"id": runs[0].id})
    st.switch_page("views/runs.py", query_params={"experiment": created.name})


st.title("New run", anchor=False)
client = cached.api()
with notices.problems_shown():
    presets = cached.presets(client)
    fields = form_fields(cached.spec_schema(client))
    load_asked(client, presets)
    choose_start(presets)
    state = st.session_state["form"]
    main, side = st.columns([5, 3], gap="large")
    with main:
        summary = st.empty()
        form = draw_form(fields, state["seed"], state["preset"], state["revision"])
        body, problem = draw_experiment(form)
    state["draft"] = form.document
    static = cached.findings(client, form.document)
    findings = static + preflight_findings(form.document)
    form.show_notes(findings, state["preset"])
    show_summary(form, findings, summary)
    with side:
        start_button(client, form, findings, body, problem)
        show_preflight(client, form.document, is_valid=not static)
        if static:
            st.caption("The estimate follows when the fields are right.")
        else:
            estimate_card.show(cached.estimate(client, form.document), form.document)
            if body and body["variants"]:
                st.caption("The estimate is for one run of the spec as it stands, not for its arms.")
