"""Files of prompts in New run: looked at, mapped, uploaded, and chosen for training, evaluation or report."""

from typing import Any

import pandas as pd
import streamlit as st

from backend.prompt_files import PromptFile
from dashboard import cached, notices, rights
from dashboard.api_client import ApiClient
from dashboard.api_errors import Conflict, Forbidden, Invalid, NotFound
from dashboard.quantities import bytes_text
from engine.prompt_spec import PromptColumns

_KINDS = ["jsonl", "ndjson", "json", "csv", "parquet"]
_HOLDS = {
    "prompt": "What the student answers.",
    "messages": "Instead of a prompt: a conversation, a list of role and content.",
    "answer": "The right answer; evaluation needs it.",
    "completion": "A whole text that answers the prompt, for warm-up or off-policy training.",
    "id": "What tells the rows apart; kept beside the prompt.",
}
_MAX_TOLD = 10  # bad rows
_USES = {
    "training": ("prompts", "path"),
    "evaluation": ("evaluation", "path"),
    "the report": ("evaluation", "report_path"),
}


def show(client: ApiClient) -> dict[str, Any]:
    """The fields of the spec that a click has chosen an upload for; empty when there was none."""
    with st.expander("Prompt files: upload your own, or choose one", icon=":material/upload_file:"):
        refusal = rights.refusal(client)
        file = st.file_uploader(
            "A file of prompts (JSON lines, CSV or Parquet)", type=_KINDS, key="prompts-file", disabled=refusal is not None, help=refusal,
        )  # fmt: skip
        try:
            if file is not None:
                send(client, file)
            return chosen(client, cached.prompt_files(client), refusal)
        except (Conflict, Forbidden, Invalid, NotFound) as error:  # of a file; others are the page's, and end it
            st.error(notices.plain(f"{error.message} {error.advice}"), icon=":material/error:")
            return {}


def send(client: ApiClient, file: Any) -> None:
    """The first rows of a file, what its columns hold, and the button that uploads it."""
    key = f"prompts-look-{file.file_id}"
    if key not in st.session_state:
        try:
            st.session_state[key] = client.look_at_prompts(file.name, file)
        except Invalid as error:
            _tell(file.name, error)
            return
    look = st.session_state[key]
    st.caption(notices.plain(f"The first rows of {file.name}:"))
    st.dataframe(pd.DataFrame(look.first), hide_index=True, key=f"prompts-first-{file.file_id}")
    columns = {}
    for what, place in zip(_HOLDS, st.columns(len(_HOLDS)), strict=True):
        guess = look.guess.get(what)
        columns[what] = place.selectbox(
            f"{what.capitalize()} column", look.columns, index=look.columns.index(guess) if guess else None,
            key=f"prompts-{what}-{file.file_id}", placeholder="none", help=_HOLDS[what],
        )  # fmt: skip
    if not st.button("Upload", icon=":material/upload:", type="primary", key="prompts-upload"):
        return
    try:
        with st.spinner("Reading every row…"):
            stored = client.upload_prompts(file.name, file, {what: name for what, name in columns.items() if name})
    except Invalid as error:
        _tell(file.name, error)
        return
    cached.prompt_files.clear()
    st.session_state["prompts-chosen"] = stored.id
    st.success(
        notices.plain(f"{stored.num_rows:,} prompts are stored; say below what they are for."),
        icon=":material/check_circle:",
    )


def _tell(name: str, error: Invalid) -> None:
    st.error(notices.plain(f"{name} cannot be taken; nothing was stored."), icon=":material/error:")
    for finding in error.findings[:_MAX_TOLD]:
        st.markdown(f"- {notices.plain(finding.message)}")
    if len(error.findings) > _MAX_TOLD:
        st.caption(f"and {len(error.findings) - _MAX_TOLD} more")


def chosen(client: ApiClient, files: list[PromptFile], refusal: str | None) -> dict[str, Any]:
    """The uploads, one of them with its first prompts, and what it is to be used for."""
    if not files:
        st.caption("Nothing was uploaded yet.")
        return {}
    by_id = {one.id: one for one in files}
    if st.session_state.get("prompts-chosen") not in by_id:
        st.session_state["prompts-chosen"] = files[0].id
    file = by_id[
        st.selectbox("Uploaded files", list(by_id), key="prompts-chosen", format_func=lambda id: _title(by_id[id]))
    ]
    st.dataframe(pd.DataFrame(file.first), hide_index=True, key=f"prompts-of-{file.id}")
    if file.system_message is not None:
        st.caption(notices.plain(f"System message of all conversations: {file.system_message[:300]}"))
    changes: dict[str, Any] = {}
    with st.container(horizontal=True):
        for what in _USES:
            if st.button(f"Use for {what}", key=f"prompts-use-{what}", icon=":material/check:"):
                changes = changes_for(file, what)
        used = f"{file.num_runs} run{' reads' if file.num_runs == 1 else 's read'} it." if file.num_runs else None
        if st.button(
            "Delete",
            icon=":material/delete:",
            key="prompts-delete",
            disabled=bool(used or refusal),
            help=used or refusal,
        ):
            client.delete_prompt_file(file.id)
            cached.prompt_files.clear()
            st.rerun()
    return changes


def changes_for(file: PromptFile, what: str) -> dict[str, Any]:
    """The fields of a spec that let it read an upload, whose columns have the usual names."""
    group, name = _USES[what]
    columns = {f"{group}.{column}": value for column, value in PromptColumns().model_dump().items()}
    changes = {f"{group}.{name}": file.reference} | columns
    if what == "training" and file.system_message is not None:
        changes |= {"prompts.template": "chat", "prompts.system_message": file.system_message}
    return changes


def _title(file: PromptFile) -> str:
    return f"{file.name} · {file.num_rows:,} prompts · {bytes_text(file.num_bytes)} · {file.sha256[:8]}"
