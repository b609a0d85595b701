"""What is made of a checkpoint: a folder, a GGUF file, a repository of the hub; asked for, followed, taken away."""

import streamlit as st

from backend.exports import Export, ExportCreate
from backend.schemas import Checkpoint
from dashboard import notices, rights
from dashboard.api_client import ApiClient
from dashboard.api_errors import Invalid
from dashboard.notices import Colour
from dashboard.quantities import age_text, bytes_text, range_text
from dashboard.spec_form import DrawnForm, draw_field
from dashboard.spec_schema import form_fields
from engine.export_spec import ExportChoice, GgufFile, HubRepository

_POLL_SECONDS = 1.5
_SHOWN = 8
_LOOKS: dict[str, tuple[str, str, Colour]] = {
    "queued": ("waiting", ":material/schedule:", "gray"),
    "running": ("at work", ":material/progress_activity:", "blue"),
    "succeeded": ("done", ":material/check_circle:", "green"),
    "failed": ("failed", ":material/error:", "red"),
    "cancelled": ("cancelled", ":material/cancel:", "gray"),
}


def name_of(choice: ExportChoice) -> str:
    """Such as `GGUF, q8_0`, `folder, bfloat16` or `hub: lab/prefix-8`."""
    if isinstance(choice, GgufFile):
        return f"GGUF, {choice.file_type}"
    dtype = "" if choice.dtype == "saved" else f", {choice.dtype}"
    return f"hub: {choice.repository}{dtype}" if isinstance(choice, HubRepository) else f"folder{dtype}"


def show_exports(client: ApiClient, checkpoint: Checkpoint) -> None:
    """The form, and the exports of this checkpoint."""
    left, right = st.columns([2, 3], gap="large")
    with left:
        _ask(client, checkpoint)
    with right:
        known = client.exports(checkpoint_id=checkpoint.id)
        if not known:
            notices.empty("Nothing was exported yet", "What a worker makes of this checkpoint appears here.")
        for one in known[:_SHOWN]:
            with st.container(border=True):
                _show(client, one)
        if len(known) > _SHOWN:
            st.caption(f"{len(known) - _SHOWN} older exports of this checkpoint are not shown.")


def _ask(client: ApiClient, checkpoint: Checkpoint) -> None:
    form = DrawnForm()
    field = next(one for one in form_fields(ExportCreate.model_json_schema()) if one.path == "export")
    draw_field(form, field, {"export": {"kind": "merged"}}, f"export-{checkpoint.id}")
    refusal = rights.refusal(client)
    clicked = st.button(
        "Export", type="primary", icon=":material/ios_share:", disabled=refusal is not None, help=refusal, key="export",
        width="stretch",
    )  # fmt: skip
    if not clicked:
        return
    try:
        client.start_export(checkpoint.id, form.document["export"])
    except Invalid as error:
        for finding in error.findings:
            st.error(notices.plain(finding.message), icon=":material/error:")
        return
    st.rerun()


def _show(client: ApiClient, export: Export) -> None:
    label, icon, colour = _LOOKS[export.state]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{notices.plain(name_of(export.export))}**", width="content")
        st.badge(label, icon=icon, color=colour)
        st.caption(age_text(export.finished_at or export.created_at), width="content")
    if export.state in ("queued", "running"):
        _show_progress(client, export)
    for finding in export.findings:
        st.error(notices.plain(finding.message), icon=":material/error:")
    if export.result is not None:
        _show_result(client, export)


def _show_progress(client: ApiClient, export: Export) -> None:
    st.fragment(_poll, run_every=_POLL_SECONDS)(client, export.id)
    if rights.refusal(client) is None and st.button("Cancel", icon=":material/cancel:", key=f"cancel-{export.id}"):
        client.cancel_export(export.id)
        st.rerun()


def _poll(client: ApiClient, export_id: str) -> None:
    with notices.problems_shown():
        export = client.export(export_id)
        if export.state not in ("queued", "running"):
            st.rerun()
        left = f", {range_text((export.eta_seconds, export.eta_seconds))} left" if export.eta_seconds else ""
        position = f", {export.queue_position - 1} before it" if export.queue_position else ""
        words = notices.plain(export.detail) if export.state == "running" else f"waiting for a worker{position}"
        st.progress(min(1.0, export.done), text=f"{words}{left}")


def _show_result(client: ApiClient, export: Export) -> None:
    result = export.result
    assert result is not None, "the caller looked"
    if result.url is not None:
        st.markdown(f"<{result.url}>" if result.url.startswith(("https://", "http://")) else notices.plain(result.url))
        st.caption(f"Commit `{result.commit}`, {len(result.files)} files, {bytes_text(result.num_bytes)}")
    if export.removed_at is not None:
        st.caption(f"Its files ({bytes_text(result.num_bytes)}) were let go {age_text(export.removed_at)}.")
    elif result.is_kept:
        _show_files(client, export)
    for note in result.notes:
        st.caption(notices.plain(note))


def _show_files(client: ApiClient, export: Export) -> None:
    assert export.result is not None, "the caller looked"
    files, link = export.result.files, client.export_link(export.id)
    size = bytes_text(export.result.num_bytes)
    with st.container(horizontal=True, vertical_alignment="center"):
        if len(files) == 1:
            st.link_button(f"Download ({size})", link.file_urls[files[0].name], icon=":material/download:")
        else:
            st.link_button(f"Download all ({size}, tar)", link.archive_url, icon=":material/download:")
        if rights.refusal(client) is None and st.button(
            "Let go",
            icon=":material/delete:",
            key=f"remove-{export.id}",
            help="Removes the files from this installation.",
        ):
            client.remove_export(export.id)
            st.rerun()
    with st.expander(
        f"{len(files)} files with sha256" if len(files) > 1 else "File and sha256", icon=":material/draft:"
    ):
        for file in files:
            st.markdown(f":small[{notices.plain(file.name)} · {bytes_text(file.num_bytes)} · `{file.sha256}`]")
