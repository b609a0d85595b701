"""What the dashboard and the command line ask of the API about uploaded files of prompts."""

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import httpx

from backend.prompt_files import PromptFile, PromptLook
from dashboard.api_transport import ApiTransport, T

_CHUNK_BYTES = 1024 * 1024
# The API reads the whole file before it answers.
_TIMEOUT = httpx.Timeout(600.0, connect=2.0)
_TYPE = {"Content-Type": "application/octet-stream"}


class PromptFileCalls(ApiTransport):
    """Part of ApiClient."""

    def look_at_prompts(self, name: str, file: BinaryIO) -> PromptLook:
        """Columns and first rows of a file that somebody may upload."""
        return self._send_file("/api/v1/prompt-looks", PromptLook, file, {"name": name})

    def upload_prompts(self, name: str, file: BinaryIO, columns: Mapping[str, str]) -> PromptFile:
        """Store the prompts of a file; `columns` are fields of a PromptMap."""
        return self._send_file("/api/v1/prompt-files", PromptFile, file, {"name": name, **columns})

    def prompt_files(self) -> list[PromptFile]:
        """The newest uploads."""
        return self._get("/api/v1/prompt-files", list[PromptFile])

    def delete_prompt_file(self, prompt_file_id: str) -> PromptFile:
        """Delete an upload that no run reads."""
        return self._call("DELETE", f"/api/v1/prompt-files/{prompt_file_id}", PromptFile, tries=1)

    def _send_file(self, path: str, kind: type[T], file: BinaryIO, params: Mapping[str, str]) -> T:
        file.seek(0)
        sent: dict[str, Any] = {"content": _pieces(file), "params": params, "headers": _TYPE, "timeout": _TIMEOUT}
        return self._call("POST", path, kind, tries=1, **sent)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_CHUNK_BYTES):
        yield piece
