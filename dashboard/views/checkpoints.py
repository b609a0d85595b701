"""Checkpoints: what was saved, and how to take it away. Files go from the API to the browser, never through here."""

import re

import pandas as pd
import streamlit as st

from backend.schemas import Checkpoint
from backend.unique_labels import unique_labels
from dashboard import address, cached, notices, rights
from dashboard.api_client import ApiClient
from dashboard.export_panel import show_exports
from dashboard.quantities import accuracy_text, bytes_text

_MAX_LISTED = 200  # as many as ApiClient.checkpoints gives
_NOT_HARMLESS = re.compile(r"[^A-Za-z0-9.]+")
_HOW_TO_OPEN = """from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "{folder}"
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)"""


def checkpoints_frame(checkpoints: list[Checkpoint]) -> pd.DataFrame:
    """Sizes as numbers and moments as such, so that a column is sorted by size."""
    return pd.DataFrame(
        {
            "run": [one.run_name for one in checkpoints],
            "step": [one.step for one in checkpoints],
            "best": [one.is_best for one in checkpoints],
            "pinned": [one.pinned for one in checkpoints],
            "accuracy": [one.accuracy for one in checkpoints],
            "size": [one.num_bytes for one in checkpoints],
            "experiment": [one.experiment_name for one in checkpoints],
            "saved": [one.created_at for one in checkpoints],
            "manifest sha256": [one.manifest_sha256 for one in checkpoints],
        }
    )


def label_of(checkpoint: Checkpoint) -> str:
    marks = "".join(
        f", {word}" for word, is_so in (("best", checkpoint.is_best), ("pinned", checkpoint.pinned)) if is_so
    )
    return f"{checkpoint.run_name} · step {checkpoint.step}{marks} · accuracy {accuracy_text(checkpoint.accuracy)}"


def show_pin(client: ApiClient, checkpoint: Checkpoint) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        refusal = rights.refusal(client)
        label = "Unpin" if checkpoint.pinned else "Pin"
        if st.button(label, icon=":material/keep:", key="pin", disabled=refusal is not None, help=refusal):
            client.pin_checkpoint(checkpoint.id, pinned=not checkpoint.pinned)
            cached.checkpoints.clear()
            cached.checkpoint.clear()
            st.rerun()
        st.caption(
            "Pinned: it stays, whatever its run's spec keeps."
            if checkpoint.pinned
            else "A working run removes what its spec does not keep; a pinned checkpoint stays."
        )


def show_download(client: ApiClient, checkpoint: Checkpoint) -> None:
    """Signed links, made afresh when the view is drawn: they expire after minutes."""
    link = client.checkpoint_link(checkpoint.id)
    # It goes into shell commands: whatever is in the name, only harmless characters may come out.
    folder = f"{_NOT_HARMLESS.sub('-', checkpoint.run_name).strip('-.') or 'run'}-step-{checkpoint.step}"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.link_button(
            f"Download all ({bytes_text(checkpoint.num_bytes)}, tar)",
            link.archive_url,
            icon=":material/download:",
            type="primary",
        )
        st.caption(
            f"The links work until {link.expires_at:%H:%M} UTC; reload the page for new ones. The command below resumes a broken download."
        )
    st.markdown("**Files**")
    for file in checkpoint.files:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.link_button(notices.plain(file.name), link.file_urls[file.name], icon=":material/draft:")
            st.markdown(f":small[{bytes_text(file.num_bytes)} · sha256 `{file.sha256}`]")
    st.markdown("**Fetch it from a shell**")
    st.caption(
        "It shows the time that is left, verifies every sha256, and called again goes on where it was interrupted."
    )
    st.code(f"incipit checkpoints download {checkpoint.id} --out {folder}", language="bash", wrap_lines=True)
    st.markdown("**Open it**")
    st.caption(
        "An ordinary Hugging Face folder; `trainer/` beside it holds optimizer and generator state for an exact resume."
    )
    unpack = f"tar --extract --strip-components 1 --directory {folder} --file {folder}.tar"
    fetch = f'curl --fail --output {folder}.tar "{link.archive_url}"'
    st.code(f"{fetch}\nmkdir {folder} && {unpack}", language="bash", wrap_lines=True)
    st.code(_HOW_TO_OPEN.format(folder=folder), language="python")
    st.markdown(f":small[manifest sha256 `{checkpoint.manifest_sha256}`]")


def show_comparison(checkpoints: list[Checkpoint], chosen: Checkpoint) -> None:
    """Two checkpoints, and the way to the playground with both."""
    others = [one for one in checkpoints if one.id != chosen.id]
    if not others:
        return
    labels = unique_labels({one.id: label_of(one) for one in others})
    same_run = next((at for at, one in enumerate(others) if one.run_id == chosen.run_id), 0)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        other = st.selectbox(
            "Compare its answers with those of", list(labels), index=same_run, format_func=lambda one: labels.get(one, one),
            key=f"compare-with-{chosen.id}",
        )  # fmt: skip
        pair = {"run": chosen.run_id, "a": chosen.id, "b": other or "", "view": "A and B"}
        st.page_link("views/playground.py", label="Ask both the same", icon=":material/forum:", query_params=pair)


st.title("Checkpoints", anchor=False)
client = cached.api()
with notices.problems_shown():
    of_run = address.asked("run")
    checkpoints = cached.checkpoints(client, of_run)
    if of_run is not None:
        name = checkpoints[0].run_name if checkpoints else cached.run(client, of_run).name
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"Checkpoints of **{notices.plain(name)}**")
            st.page_link("views/checkpoints.py", label="Show all", icon=":material/filter_alt_off:", query_params={})
    is_cut = len(checkpoints) >= _MAX_LISTED
    wanted = address.asked("checkpoint")
    if wanted is not None and wanted not in {one.id for one in checkpoints}:
        checkpoints = [cached.checkpoint(client, wanted), *checkpoints]  # older than the list, or not there at all
    if not checkpoints:
        notices.empty(
            "No checkpoints yet",
            "A run saves one whenever its full-length evaluation is its best so far, at regular steps, and at its end.",
        )
        st.page_link("views/runs.py", label="To the runs", icon=":material/list:")
        st.stop()
    if is_cut:
        narrower = "" if of_run is not None else "; the page of a run leads to its own"
        st.caption(f"The newest {_MAX_LISTED} checkpoints are listed, older ones are not{narrower}.")
    box = st.column_config.CheckboxColumn(width="small")
    columns = {
        "accuracy": st.column_config.NumberColumn(format="%.3f"), "best": box, "pinned": box,
        "size": st.column_config.NumberColumn(format="bytes"), "saved": st.column_config.DatetimeColumn(format="distance"),
    }  # fmt: skip
    st.dataframe(
        checkpoints_frame(checkpoints),
        hide_index=True,
        key="checkpoints",
        column_config=columns,
        placeholder=notices.NOTHING,
    )
    by_id = {one.id: one for one in checkpoints}
    ids, labels = list(by_id), unique_labels({one.id: label_of(one) for one in checkpoints})
    best_first = next((at for at, one in enumerate(checkpoints) if one.is_best), 0)
    chosen = st.selectbox(
        "Checkpoint", ids, index=address.asked_index("checkpoint", ids, best_first), format_func=lambda one: labels.get(one, one),
        key="chosen-checkpoint",
    )  # fmt: skip
    address.keep("checkpoint", chosen)
    show_pin(client, by_id[chosen or ids[0]])
    show_comparison(checkpoints, by_id[chosen or ids[0]])
    as_it_is, made = st.tabs([":material/download: As it is", ":material/ios_share: Export"])
    with as_it_is:
        show_download(client, by_id[chosen or ids[0]])
    with made:
        show_exports(client, by_id[chosen or ids[0]])
