"""Analyses: where the signal of a pair of models lies, asked of a worker before anything is trained."""

from typing import Any

import streamlit as st

from backend.analyses import Analysis
from backend.unique_labels import unique_labels
from dashboard import address, analysis_panels, cached, notices, rights
from dashboard.api_client import ApiClient
from dashboard.api_errors import Invalid
from dashboard.quantities import age_text, moment_text, range_text
from dashboard.spec_form import DrawnForm, draw_field, kind_label
from dashboard.spec_schema import form_fields

_POLL_SECONDS = 1.5
_MAX_RUNS = 50


def bases(client: ApiClient) -> dict[str, str]:
    """Keys and labels of the specs that an analysis may be asked of: the presets and the newest runs."""
    # First those whose models come with Incipit: they can be asked at once.
    presets = sorted(cached.presets(client), key=lambda one: not one.spec.student.path.startswith("builtin:"))
    found = {f"preset {one.name}": f"Preset: {one.title}" for one in presets}
    asked = address.asked("from")
    runs = cached.runs(client)[:_MAX_RUNS]
    found |= {f"run {one.id}": f"Run: {one.name} · {one.experiment_name}" for one in runs}
    if asked and f"run {asked}" not in found:
        found[f"run {asked}"] = f"Run: {cached.run(client, asked).name}"
    return unique_labels(found)


def spec_of(client: ApiClient, key: str) -> dict[str, Any]:
    kind, _, name = key.partition(" ")
    if kind == "run":
        return cached.run(client, name).spec.model_dump(mode="json")
    return next(one for one in cached.presets(client) if one.name == name).spec.model_dump(mode="json")


def ask(client: ApiClient) -> None:
    """The form: whose models, which question; starting it shows it at once."""
    labels = bases(client)
    keys = list(labels)
    asked = f"run {address.asked('from')}"
    base = st.selectbox(
        "Models and prompts of", keys, index=keys.index(asked) if asked in keys else 0, format_func=lambda one: labels[one],
        key="analysis-base", help="Student, teacher, prompts, scorer and lengths come from this spec; nothing is trained.",
    )  # fmt: skip
    form = DrawnForm()
    question = next(one for one in form_fields(cached.analysis_schema(client)) if one.path == "analysis")
    draw_field(form, question, {}, "analysis")
    refusal = rights.refusal(client)
    clicked = st.button(
        "Ask", type="primary", icon=":material/play_arrow:", disabled=base is None or refusal is not None, help=refusal,
        width="stretch",
    )  # fmt: skip
    if not clicked or base is None:
        return
    try:
        kind, _, name = base.partition(" ")
        created = client.start_analysis(
            {"run": spec_of(client, base), "run_id": name if kind == "run" else None, **form.document}
        )
    except Invalid as error:
        st.error(notices.plain(error.message), icon=":material/error:")
        for finding in error.findings:
            st.markdown(f"- **{notices.plain(finding.field)}**: {notices.plain(finding.message)}")
        return
    address.keep("analysis", created.id)
    st.rerun()


def label_of(analysis: Analysis) -> str:
    """Without its state and age: the browser names its choice by the label, which must still be there when it arrives."""
    return f"{kind_label(analysis.spec.analysis.kind)} · {analysis.spec.run.name} · {moment_text(analysis.created_at)}"


def show(client: ApiClient, analysis: Analysis) -> None:
    spec = analysis.spec
    st.header(kind_label(spec.analysis.kind).capitalize(), anchor=False)
    models = notices.plain(f"{spec.run.student.path} → {spec.run.teacher.path} · {spec.run.name}")
    st.caption(f"{models} · asked {age_text(analysis.created_at)}")
    if analysis.state in ("queued", "running"):
        st.fragment(_poll, run_every=_POLL_SECONDS)(client, analysis.id)
        if rights.refusal(client) is None and st.button("Cancel", icon=":material/cancel:", key="cancel-analysis"):
            client.cancel_analysis(analysis.id)
            st.rerun()
    elif analysis.state == "succeeded":
        analysis_panels.show_result(analysis)
    elif analysis.state == "cancelled":
        st.info("It was cancelled; nothing was kept.", icon=":material/cancel:")
    else:
        st.error("It failed.", icon=":material/error:")
        for finding in analysis.findings:
            where = f"**{notices.plain(finding.field)}**: " if finding.field else ""
            st.markdown(f"- {where}{notices.plain(finding.message)}")


def _poll(client: ApiClient, analysis_id: str) -> None:
    with notices.problems_shown():
        analysis = client.analysis(analysis_id)
        if analysis.state not in ("queued", "running"):
            st.rerun()
        left = f", {range_text((analysis.eta_seconds, analysis.eta_seconds))} left" if analysis.eta_seconds else ""
        words = notices.plain(analysis.detail) if analysis.state == "running" else "waiting for a worker"
        st.progress(min(1.0, analysis.done), text=f"{words}{left}")


st.title("Analyses", anchor=False)
st.caption(
    "Where does the signal lie, and how far can it be trusted? Asked of a pair of models before anything is trained."
)
client = cached.api()
with notices.problems_shown():
    left, right = st.columns([2, 3], gap="large")
    with left:
        ask(client)
    with right:
        known, wanted = client.analyses(), address.asked("analysis")
        if wanted is not None and wanted not in {one.id for one in known}:
            known = [client.analysis(wanted), *known]  # older than the list, or not there at all
        if not known:
            notices.empty(
                "Nothing was asked yet",
                "Divergence by position says how short a prefix may be; the teacher-prefix test says whether early tokens decide.",
            )
            st.stop()
        by_id = {one.id: one for one in known}
        ids, labels = list(by_id), unique_labels({one.id: label_of(one) for one in known})
        # A new analysis makes it another list, which starts at the address and not where the old one was left.
        chosen = st.selectbox(
            "Answers", ids, index=address.asked_index("analysis", ids), format_func=lambda one: labels.get(one, one),
            key=f"chosen-analysis-{ids[0]}",
        )  # fmt: skip
        address.keep("analysis", chosen)
        show(client, by_id[chosen or ids[0]])
