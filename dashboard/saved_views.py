"""The comparison at hand as a link, and the views that people have kept with a note."""

from collections.abc import Callable, Sequence
from urllib.parse import parse_qsl, urlencode

import streamlit as st

from backend.saved_views import SavedView
from dashboard import cached, notices, rights
from dashboard.api_client import ApiClient
from dashboard.api_errors import ApiError, Invalid
from dashboard.quantities import age_text

_KEPT = ("x", "target", "budget")
"""What of Compare's address is kept beside the runs."""


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
            _entry(client, view, may_change=may_change)
        st.divider()
        if may_change:
            _form(client, query)
        st.caption("Link to this comparison")
        st.code(f"{(st.context.url or '').split('?')[0]}?{query}", language=None, wrap_lines=True)


def _entry(client: ApiClient, view: SavedView, *, may_change: bool) -> None:
    with st.container(border=True):
        st.page_link(
            "views/compare.py",
            label=notices.plain(view.name),
            icon=":material/bookmark:",
            query_params=parse_qsl(view.query),
        )
        if view.note:
            st.markdown(notices.plain(view.note))
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(notices.plain(f"{view.created_by} · {age_text(view.created_at)}"))
            if may_change and st.button("Remove", icon=":material/delete:", key=f"remove-{view.id}", type="tertiary"):
                _act(lambda: client.remove_view(view.id), f"Removed: {view.name}")


def _form(client: ApiClient, query: str) -> None:
    name = st.text_input("Name", key="view-name", max_chars=128)
    note = st.text_area("Hypothesis or result", key="view-note", max_chars=10_000, height=90)
    if st.button("Keep this view", icon=":material/bookmark_add:", key="keep-view", disabled=not name.strip()):
        _act(lambda: client.save_view(name.strip(), note, query), f"Kept: {name.strip()}")


def _act(change: Callable[[], SavedView], done: str) -> None:
    try:
        change()
    except Invalid as error:
        st.error(notices.plain("; ".join(one.message for one in error.findings) or error.message))
    except ApiError as error:
        st.error(notices.plain(error.message))
    else:
        cached.saved_views.clear()
        st.toast(notices.plain(done), icon=":material/bookmark:")
        st.rerun()
