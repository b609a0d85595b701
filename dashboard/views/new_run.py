"""New run: a form made from the spec's schema, checked while it is filled in, with an estimate before the start."""

import hashlib
import json
from typing import Any

import streamlit as st

from backend.expansion import with_changes
from backend.schemas import Preset
from dashboard import address, cached, estimate_card, notices, prompt_uploads, rights, run_draft, worker_room
from dashboard.api_client import ApiClient
from dashboard.api_errors import Invalid
from dashboard.commands import curl_command, train_command
from dashboard.comparison_frames import differences_frame
from dashboard.experiment_form import draw_experiment
from dashboard.preflight_check import preflight_findings, show_preflight
from dashboard.spec_form import DrawnForm, draw_form
from dashboard.spec_schema import form_fields
from dashboard.submission import forget_submission, submission_key
from engine.findings import Finding

_MAX_ESTIMATED = 24  # arms; the cache of estimates holds more, so a redrawn page asks for none again


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
        run_draft.load(preset.spec.model_dump(mode="json"), f"preset {chosen}", preset.variants, preset.title)
        address.keep("from", None)
        address.keep("preset", chosen)
        st.rerun()
    if chosen is not None:
        st.caption(notices.plain(by_name[chosen].description))


def choose_prompts(client: ApiClient) -> None:
    """Uploaded prompts: a choice goes into what is being edited."""
    changes = prompt_uploads.show(client)
    if changes:
        state = st.session_state["form"]
        run_draft.go_on(with_changes(state.get("draft", state["seed"]), changes))
        st.rerun()


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
        findings = cached.api().validate(document)
    except (ValueError, RecursionError) as error:
        st.error(notices.plain(f"{file.name} cannot be read as JSON: {error}. Nothing was changed."))
        return
    if findings:
        st.error(notices.plain(f"{file.name} is not a valid spec; nothing was changed."))
        for finding in findings:
            st.markdown(f"- {notices.plain(finding.message)}")
        return
    run_draft.load(document, f"file {file.name}")
    st.session_state["imported"] = digest
    address.keep("from", None)
    address.keep("preset", None)
    st.rerun()


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
    for filter in ("q", "state", "page"):  # filters outlive their page: an old one would hide the new runs
        st.session_state.pop(filter, None)
    st.switch_page("views/runs.py", query_params={"experiment": created.name})


def show_estimate(client: ApiClient, document: dict[str, Any]) -> None:
    """What one run of the spec costs on the workers that are connected."""
    workers = cached.workers(client)
    document = worker_room.on_their_device(document, workers)
    estimate_card.show(cached.estimate(client, document), document, workers)


def show_total(client: ApiClient, body: dict[str, Any]) -> None:
    """What all arms and seeds cost together; an arm that is not valid says so."""
    if len(body["variants"]) > _MAX_ESTIMATED:
        st.caption(
            f"{len(body['variants'])} arms: their total is shown for {_MAX_ESTIMATED} at most, each asks the API once."
        )
        return
    workers = cached.workers(client)
    estimated = []
    for arm in body["variants"] or [{"name": body["base"].get("name"), "changes": {}}]:
        document = with_changes(body["base"], arm["changes"]) | {"name": arm["name"]}
        document = worker_room.on_their_device(document, workers)
        try:
            estimated.append((cached.estimate(client, document), document))
        except Invalid as error:
            said = error.findings[0].message if error.findings else error.message
            st.error(notices.plain(f"{arm['name']}: {said}"), icon=":material/error:")
            return
    estimate_card.show_total(estimated, len(body["seeds"]), workers)


def show_differences(form: DrawnForm) -> None:
    state = st.session_state["form"]
    differences = differences_frame(state["preset"], form.document)
    if not differences.empty:
        count = f"{len(differences)} field{' differs' if len(differences) == 1 else 's differ'}"
        with st.expander(f"{count} from {notices.plain(state['source'])}", icon=":material/difference:"):
            st.dataframe(differences, hide_index=True, key="differences")


def show_commands(body: dict[str, Any]) -> None:
    with st.expander("Without this page: API, command line", icon=":material/terminal:"):
        st.markdown("Ask the API for the same; `INCIPIT_API_KEY` holds a key with the role operator:")
        st.code(curl_command(cached.api().public_url, body), language="bash", wrap_lines=True)
        st.markdown("Train one run here and now, without API and worker:")
        st.code(train_command(body), language="bash", wrap_lines=True)


st.title("New run", anchor=False)
client = cached.api()
with notices.problems_shown():
    presets = cached.presets(client)
    fields = form_fields(cached.spec_schema(client))
    run_draft.load_asked(client, presets)
    choose_start(presets)
    choose_prompts(client)
    state = st.session_state["form"]
    main, side = st.columns([5, 3], gap="large")
    with main:
        summary = st.empty()
        form = draw_form(fields, state["seed"], state["preset"], state["revision"])
        body, problem = draw_experiment(form, fields)
    state["draft"] = body["base"] if body else form.document
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
            show_estimate(client, form.document)
            if body and (body["variants"] or len(body["seeds"]) > 1):
                st.caption("This is for one run of the spec as it stands; all arms and seeds together:")
                show_total(client, body)
        show_differences(form)
        if body:
            show_commands(body)
