"""Sends a folder to a model repository of the Hugging Face hub, or of what stands at HF_ENDPOINT, in one commit.

The token is that of huggingface_hub: HF_TOKEN, or the file that HF_TOKEN_PATH names. It is in no sentence from here.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import RunError, first_line
from engine.export_spec import ExportSpec, HubRepository
from engine.findings import Finding

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_MADE_BY_THE_HUB = {".gitattributes"}  # in a repository that nobody has written to
_FIELD = "export.repository"
_TRUE = ("1", "on", "yes", "true")


@dataclass(frozen=True)
class Sent:
    """Where the files are."""

    url: str
    commit: str
    notes: list[str]


class HubUpload:
    """One upload. RunError with a finding when this machine may not or cannot do it."""

    def __init__(self, choice: HubRepository, asked: ExportSpec) -> None:
        """Refuses what can be known without the network."""
        self.repository = choice.repository
        self._choice = choice
        self._mark = f"export {asked.id}"
        self._message = f"Step {asked.card.step} of a run of Incipit ({self._mark})"
        self._api = _api()
        self._exists = False

    @property
    def url(self) -> str:
        return f"{self._api.endpoint}/{self.repository}"

    def found(self) -> Sent | None:
        """What an earlier try of this very export has sent; None when there is none and the name may be used."""
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._told():
            try:
                there = self._api.model_info(self.repository)
            except RepositoryNotFoundError:
                return None
            self._exists = True
            commits = self._api.list_repo_commits(self.repository)
        mine = next((one for one in commits if self._mark in one.title), None)
        if mine is not None:
            return Sent(self.url, mine.commit_id, ["It was there already from an earlier try of this export."])
        names = {one.rfilename for one in there.siblings or []}
        if names - _MADE_BY_THE_HUB and not self._choice.into_existing:
            raise _refused(
                f"export.repository is {self.repository!r}, which is taken: it holds {len(names)} files; choose another name, or "
                "set export.into_existing to add a commit to it."
            )
        return None

    def send(self, folder: Path, names: list[str], on_bytes: Callable[[int], None]) -> Sent:
        """Make the repository if there is none and commit the files; a repository that was made for nothing is removed."""
        from huggingface_hub import CommitOperationAdd

        is_mine = not self._exists
        with self._told(), contextlib.ExitStack() as files:
            if is_mine:
                self._api.create_repo(self.repository, private=self._choice.private)
            try:
                readers = {name: files.enter_context(_Counted(folder / name)) for name in names}
                additions = [
                    CommitOperationAdd(path_in_repo=name, path_or_fileobj=reader) for name, reader in readers.items()
                ]
                for reader in readers.values():  # from here on what is read is sent; before it was hashed
                    reader.on_bytes = on_bytes
                commit = self._api.create_commit(self.repository, additions, commit_message=self._message)
            except BaseException:
                if is_mine:
                    with contextlib.suppress(Exception):
                        self._api.delete_repo(self.repository)
                raise
        notes = [] if is_mine else ["The repository was there already and stays as private as it was."]
        return Sent(self.url, commit.oid, notes)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except RunError:
            raise
        except Exception as error:
            raise self._failure(error) from None  # a chain would carry requests, and so the token

    def _failure(self, error: BaseException) -> RunError:
        """The sentence for what huggingface_hub raised: it wraps what a transfer raised in what says which file it was."""
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__) is not None and cause not in chain:
            chain.append(cause)
        answered = next((one for one in chain if isinstance(one, HfHubHTTPError)), None)
        endpoint = self._api.endpoint
        if any(isinstance(one, OfflineModeIsEnabled) for one in chain):
            return _offline()
        if answered is None:
            said = self._without_token(first_line(chain[-1]))
            message = f"The files could not be sent to {endpoint} ({said}); correct HF_ENDPOINT or the network, then export again."
            return RunError("server_unreachable", message, [Finding(field="", message=message)])
        status = answered.response.status_code
        if status == 401:
            return _refused(
                f"{endpoint} does not know the worker's token (401); set HF_TOKEN, or the file at HF_TOKEN_PATH, to a valid one with write "
                "access and restart the worker.",
                field="",
            )
        if status == 403:
            owner = self.repository.partition("/")[0]
            return _refused(
                f"export.repository is {self.repository!r}, but the worker's token may not write for {owner!r} (403); take an owner that "
                "the token's account belongs to, or give the token write access."
            )
        if status == 409:
            return _refused(
                f"export.repository is {self.repository!r}, which was taken meanwhile (409); choose another name."
            )
        said = self._without_token(first_line(Exception(answered.server_message or "no reason given")))
        return _refused(f"{endpoint} refused {self.repository!r} ({status}: {said}); correct that, then export again.")

    def _without_token(self, text: str) -> str:
        return text.replace(str(self._api.token), "…")


class _Counted(io.BufferedReader):
    """A file that tells how much of it is read."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.on_bytes: Callable[[int], None] = lambda num_bytes: None

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        self.on_bytes(len(chunk))
        return chunk


def _api() -> HfApi:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE:
        raise _offline()
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils.tqdm import disable_progress_bars

    token = get_token()
    if token is None:
        raise _refused(
            "The worker has no token for the hub; set HF_TOKEN, or HF_TOKEN_PATH to a file with one, to a token with write access and "
            "restart the worker.",
            field="",
        )
    disable_progress_bars()
    endpoint: Any = os.environ.get("HF_ENDPOINT") or None
    return HfApi(endpoint=endpoint, token=token)


def _offline() -> RunError:
    return _refused(
        "HF_HUB_OFFLINE is set on the worker, which so sends nothing to a hub; unset it there, or export a merged folder and send that "
        "from elsewhere.",
        field="",
    )


def _refused(message: str, *, field: str = _FIELD) -> RunError:
    return RunError("bad_spec", message, [Finding(field=field, message=message)])
