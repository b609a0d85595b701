"""Checkpoints and their files."""

import time
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Path, Query, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from backend.artifact_store import ArtifactStore
from backend.cursors import from_cursor
from backend.dependencies import (
    ERRORS,
    ID_PATTERN,
    TEXT_PATTERN,
    Artifacts,
    Config,
    Cursor,
    Id,
    Reading,
    Responses,
    SignedReading,
    errors,
    page_size,
)
from backend.download_places import DownloadPlaces
from backend.downloads import StoredFolder, stored_checkpoint
from backend.locked_route import locked_router
from backend.problems import not_found
from backend.queries import checkpoints as queries
from backend.schemas import Checkpoint, Link
from backend.signatures import PREFIX, VALID_SECONDS, require_signature, signed_url

_Page = Annotated[int, page_size(200)]
router = locked_router(prefix="/checkpoints", tags=["checkpoints"])
# No credentials: the signature in the address is the right to it.
signed_router = locked_router(prefix=PREFIX.removeprefix("/api/v1"), tags=["checkpoints"])

FileName = Annotated[
    str, Path(max_length=1024, pattern=r"^[^\x00-\x1f]+$", description="As in the checkpoint's list of files.")
]
Expires = Annotated[int, Query(ge=0, le=2**53)]
Signature = Annotated[str, Query(max_length=128, pattern=TEXT_PATTERN)]


def _places(request: Request) -> DownloadPlaces:
    places: DownloadPlaces = request.app.state.download_places
    return places


Places = Annotated[DownloadPlaces, Depends(_places)]
FILE: Responses = {
    200: {"content": {"application/octet-stream": {}}, "description": "The file."},
    206: {"content": {"application/octet-stream": {}}, "description": "The part that Range asks for."},
    302: {"description": "It is in a bucket, whose server sends it from the address in Location, for five minutes."},
    304: {"description": "The file is still the one with this ETag, its sha256."},
    416: ERRORS[416],
}
ARCHIVE: Responses = {200: {"content": {"application/x-tar": {}}, "description": "The folder as an uncompressed tar."}}


@router.get("", operation_id="list_checkpoints", responses=errors())
def list_checkpoints(
    session: Reading,
    limit: _Page,
    run_id: Annotated[str | None, Query(pattern=ID_PATTERN)] = None,
    cursor: Cursor = None,
) -> list[Checkpoint]:
    """Checkpoints of all runs, or of one, newest first."""
    return queries.checkpoints(session, run_id=run_id, before=from_cursor(cursor) if cursor else None, limit=limit)


@router.get("/{checkpoint_id}", operation_id="get_checkpoint", responses=errors(404))
def get_checkpoint(checkpoint_id: Id, session: Reading) -> Checkpoint:
    """One checkpoint."""
    found = queries.checkpoint(session, checkpoint_id)
    if found is None:
        raise not_found("checkpoint", checkpoint_id)
    return found[0]


@router.get(
    "/{checkpoint_id}/files/{name:path}",
    operation_id="get_checkpoint_file",
    response_class=Response,
    responses={**FILE, **errors(404, 410)},
)
def get_checkpoint_file(
    checkpoint_id: Id, name: FileName, session: Reading, store: Artifacts, places: Places, request: Request
) -> Response:
    """A file of a checkpoint, with Range; its ETag is its sha256."""
    return places.sent(_stored(checkpoint_id, session, store).file(name, request.headers))


@router.get(
    "/{checkpoint_id}/archive",
    operation_id="get_checkpoint_archive",
    response_class=Response,
    responses={**ARCHIVE, **errors(404, 410)},
)
def get_checkpoint_archive(checkpoint_id: Id, session: Reading, store: Artifacts, places: Places) -> Response:
    """A checkpoint's folder as one uncompressed tar."""
    return places.sent(_stored(checkpoint_id, session, store).archive())


@router.post("/{checkpoint_id}/link", operation_id="create_checkpoint_link", responses=errors(403, 404, 413, 415))
def create_checkpoint_link(checkpoint_id: Id, session: Reading, settings: Config, store: Artifacts) -> Link:
    """Addresses for a browser, which work without credentials for 15 minutes."""
    stored = _stored(checkpoint_id, session, store)
    expires = int(time.time()) + VALID_SECONDS
    secret = settings.signing_secret()
    return Link(
        archive_url=signed_url(secret, f"{checkpoint_id}/archive", expires),
        file_urls={name: signed_url(secret, f"{checkpoint_id}/files/{name}", expires) for name in stored.names()},
        expires_at=datetime.fromtimestamp(expires, UTC),
    )


@signed_router.get(
    "/{checkpoint_id}/files/{name:path}",
    operation_id="download_checkpoint_file",
    response_class=Response,
    responses={**FILE, **errors(403, 404, 410)},
)
def download_checkpoint_file(
    checkpoint_id: Id,
    name: FileName,
    expires: Expires,
    signature: Signature,
    session: SignedReading,
    settings: Config,
    store: Artifacts,
    places: Places,
    request: Request,
) -> Response:
    """A file of a checkpoint by a signed address."""
    require_signature(settings.signing_secret(), f"{checkpoint_id}/files/{name}", expires, signature)
    return places.sent(_stored(checkpoint_id, session, store).file(name, request.headers))


@signed_router.get(
    "/{checkpoint_id}/archive",
    operation_id="download_checkpoint_archive",
    response_class=Response,
    responses={**ARCHIVE, **errors(403, 404, 410)},
)
def download_checkpoint_archive(
    checkpoint_id: Id,
    expires: Expires,
    signature: Signature,
    session: SignedReading,
    settings: Config,
    store: Artifacts,
    places: Places,
) -> Response:
    """A checkpoint's folder as one uncompressed tar by a signed address."""
    require_signature(settings.signing_secret(), f"{checkpoint_id}/archive", expires, signature)
    return places.sent(_stored(checkpoint_id, session, store).archive())


def _stored(checkpoint_id: str, session: Session, store: ArtifactStore) -> StoredFolder:
    found = queries.checkpoint(session, checkpoint_id)
    if found is None:
        raise not_found("checkpoint", checkpoint_id)
    return stored_checkpoint(*found, store)
