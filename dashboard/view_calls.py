"""Saved views, as the API keeps them."""

from backend.saved_views import SavedView, etag_of
from dashboard.api_transport import ApiTransport


class ViewCalls(ApiTransport):
    """A part of ApiClient."""

    def saved_views(self) -> list[SavedView]:
        """The project's views, the newest first."""
        return self._get("/api/v1/views", list[SavedView])

    def save_view(self, name: str, note: str, query: str) -> SavedView:
        """Keep a view; the API judges it."""
        return self._create("/api/v1/views", SavedView, {"name": name, "note": note, "query": query})

    def update_view(self, view: SavedView, name: str, note: str, query: str) -> SavedView:
        """Replace what a view says, unless somebody changed it since it was read: then Conflict."""
        body = {"name": name, "note": note, "query": query}
        headers = {"If-Match": etag_of(view)}
        return self._call("PUT", f"/api/v1/views/{view.id}", SavedView, tries=1, json=body, headers=headers)

    def remove_view(self, view_id: str) -> SavedView:
        """Remove a view."""
        return self._post(f"/api/v1/views/{view_id}/remove", SavedView, None)
