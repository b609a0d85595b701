"""What the dashboard and the command line ask of the API about exports."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote

import httpx

from backend.exports import Export
from backend.schemas import Link
from dashboard.api_transport import ApiTransport, Document

_EXPORTS = "/api/v1/exports"


class ExportCalls(ApiTransport):
    """Part of ApiClient."""

    def start_export(self, checkpoint_id: str, choice: Document) -> Export:
        """Queue an export from the fields of ExportCreate; the API judges them."""
        return self._create(_EXPORTS, Export, {"checkpoint_id": checkpoint_id, "export": choice})

    def exports(self, *, checkpoint_id: str | None = None) -> list[Export]:
        """The last ones, newest first."""
        return self._get(_EXPORTS, list[Export], {"checkpoint_id": checkpoint_id})

    def export(self, export_id: str) -> Export:
        return self._get(f"{_EXPORTS}/{export_id}", Export)

    def cancel_export(self, export_id: str) -> Export:
        return self._post(f"{_EXPORTS}/{export_id}/cancel", Export, None)

    def remove_export(self, export_id: str) -> Export:
        """Let its files go."""
        return self._post(f"{_EXPORTS}/{export_id}/remove", Export, None)

    def export_link(self, export_id: str) -> Link:
        """Signed addresses, made absolute so that a browser can follow them."""
        return self._link(f"{_EXPORTS}/{export_id}/link")

    @contextmanager
    def export_file(self, export_id: str, name: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """A file of an export as a response that is still coming in: 200, or 206 to a Range among the headers."""
        with self._streamed(f"{_EXPORTS}/{quote(export_id, safe='')}/files/{quote(name)}", headers) as response:
            yield response
