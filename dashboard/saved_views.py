"""The comparison at hand as a link, and the views that people have kept with a note."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode

import streamlit as st

from backend.saved_views import SavedView
from dashboard import cached, notices, rights
from dashboard.api_client import ApiClient
from dashboard.api_errors import ApiError, Conflict, Invalid
from dashboard.quantities import age_text

_KEPT = ("measure", "x", "target", "budget")
"""What of Compare's address is kept beside the runs."""
_EDITING = "edited-view"
_FORM = "number-of-view-form"


@dataclass(frozen=True)
class _Editing:
    """A view that is being edited in this session."""

    begun: SavedView
    """As it was when that began."""
    read: SavedView
    """As the person last saw it: what others change behind that must not be undone unseen."""


def query_of(run_ids: Sequence[str]) -> str:
    """The address of this comparison behind the question mark: its runs by name, so that later ones do not slip in."""
    settings = {name: value for name in _KEPT if (value := st.query_params.get(name))}
    return urlencode({"runs": ",".join(run_ids), **settings}, safe=",")


def popover(client: ApiClient, run_ids: Sequence[str]) -> None:
    """Saved views, a form to keep this one, and its link."""
    with st.popover("Saved views", icon=":material/bookmarks:"):
        query = query_of(run_ids)
        views = cached.saved_views(client)
        may_change = rights.refusal(client) is None
        if not views:
            st.caption("None yet. Keep a comparison with what you expect or have found.")
        for view in views:
            editing: _Editing | None = st.session_state.get(_EDITING)
            with st.container(border=True):
                if may_change and editing is not None and editing.begun.id == view.id:
                    _edit_form(client, editing, query)
                else:
                    _entry(client, view, may_change=may_change)
        st.divider()
        if may_change:
            _form(client, query)
        st.caption("Link to this comparison")
        st.code(f"{(st.context.url or '').split('?')[0]}?{query}", language=None, wrap_lines=True)


def _entry(client: ApiClient, view: SavedView, *, may_change: bool) -> None:
    st.page_link(
        "views/compare.py",
        label=notices.plain(view.name),
        icon=":material/bookmark:",
        query_params=parse_qsl(view.query),
    )
    if view.note:
        st.markdown(notices.plain(view.note))
    changed = f" · changed {age_text(view.updated_at)}" if view.updated_at > view.created_at else ""
    st.caption(notices.plain(f"{view.created_by} · {age_text(view.created_at)}{changed}"))
    if not may_change:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Edit", icon=":material/edit:", key=f"edit-{view.id}", type="tertiary"):
            st.session_state[_EDITING] = _Editing(view, view)
            st.rerun()
        if st.button("Remove", icon=":material/delete:", key=f"remove-{view.id}", type="tertiary"):
            _act(lambda: client.remove_view(view.id), f"Removed: {view.name}")


def _edit_form(client: ApiClient, editing: _Editing, query: str) -> None:
    """Name, note and what the view shows."""
    id, begun = editing.begun.id, editing.begun
    name = st.text_input("Name of the view", begun.name, key=f"name-of-{id}", max_chars=128)
    note = st.text_area("Its hypothesis or result", begun.note, key=f"note-of-{id}", max_chars=10_000, height=120)
    shows_page = begun.query == query
    replaces = st.checkbox(
        "Let it show what this page shows now",
        shows_page,
        key=f"query-of-{id}",
        disabled=shows_page,
        help="It does already." if shows_page else "Its runs, cost, target and budget.",
    )
    with st.container(horizontal=True):
        if st.button("Save", icon=":material/save:", key=f"save-{id}", type="primary", disabled=not name.strip()):
            wanted = (name.strip(), note, query if replaces else begun.query)
            _act(lambda: _update(client, editing, *wanted), f"Saved: {wanted[0]}", forgets=_EDITING)
        if st.button("Cancel", key=f"cancel-{id}"):
            st.session_state.pop(_EDITING)
            st.rerun()


def _update(client: ApiClient, editing: _Editing, name: str, note: str, query: str) -> SavedView:
    """Save what was edited; when somebody changed the view meanwhile, a Conflict that says to what."""
    try:
        return client.update_view(editing.read, name, note, query)
    except Conflict:
        now = next((one for one in client.saved_views() if one.id == editing.read.id), None)
        if now is None:
            raise
        cached.saved_views.clear()
        st.session_state[_EDITING] = replace(editing, read=now)  # so that the next save replaces it knowingly
        noted = f", with the note “{now.note}”" if now.note else ", without a note"
        raise Conflict(
            f"Somebody changed this view while you edited it, so yours was not saved. It is called “{now.name}” now{noted}. "
            "Save again to replace that with yours, or cancel to keep theirs."
        ) from None


def _form(client: ApiClient, query: str) -> None:
    # The fields get another name when a view was kept, and so are empty again.
    number = st.session_state.setdefault(_FORM, 0)
    name = st.text_input("Name", key=f"view-name-{number}", max_chars=128)
    note = st.text_area("Hypothesis or result", key=f"view-note-{number}", max_chars=10_000, height=90)
    if st.button("Keep this view", icon=":material/bookmark_add:", key="keep-view", disabled=not name.strip()):
        _act(lambda: _create(client, name.strip(), note, query), f"Kept: {name.strip()}")


def _create(client: ApiClient, name: str, note: str, query: str) -> SavedView:
    kept = client.save_view(name, note, query)
    st.session_state[_FORM] += 1
    return kept


def _act(change: Callable[[], SavedView], done: str, *, forgets: str | None = None) -> None:
    """Do it and say so; `forgets` is what of the session is over then."""
    try:
        change()
    except Invalid as error:
        st.error(notices.plain("; ".join(one.message for one in error.findings) or error.message))
    except ApiError as error:
        st.error(notices.plain(error.message))
    else:
        cached.saved_views.clear()
        if forgets is not None:
            st.session_state.pop(forgets, None)
        st.toast(notices.plain(done), icon=":material/bookmark:")
        st.rerun()
