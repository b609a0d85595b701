"""Exports: what a worker makes of a checkpoint, and its files."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Query, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from backend.artifact_store import ArtifactStore, export_store
from backend.dependencies import (
    ID_PATTERN,
    Artifacts,
    Bell,
    Caller,
    Config,
    Creation,
    Id,
    Reading,
    SignedReading,
    Store,
    errors,
    page_size,
)
from backend.downloads import StoredFolder, stored_export
from backend.export_intake import resolved_export
from backend.exports import Export, ExportCreate
from backend.locked_route import locked_router
from backend.problems import Refusal, not_found
from backend.project_database import ProjectDatabase
from backend.queries import exports as queries
from backend.routes.checkpoints import ARCHIVE, FILE, Expires, FileName, Places, Signature
from backend.schemas import Link
from backend.signatures import PREFIX, VALID_SECONDS, require_signature, signed_url

_Page = Annotated[int, page_size(50)]
router = locked_router(prefix="/exports", tags=["exports"])


def _exported(store: Artifacts, settings: Config) -> ArtifactStore:
    return export_store(store, settings.export_dir)


Exported = Annotated[ArtifactStore, Depends(_exported)]
# No credentials: the signature in the address is the right to it.
signed_router = locked_router(prefix=f"{PREFIX.removeprefix('/api/v1')}/exports", tags=["exports"])


@router.post(
    "", operation_id="create_export", status_code=201, response_model=Export, responses=errors(403, 409, 413, 415)
)
def create_export(
    body: ExportCreate, once: Creation, caller: Caller, settings: Config, store: Artifacts, doorbell: Bell
) -> Response:
    """Have a worker make a plain folder, a GGUF file or a repository of the hub of a checkpoint."""
    queued: list[str] = []

    def create(session: Session) -> tuple[Export, str]:
        wanted = resolved_export(session, body, settings.home, store)
        created = queries.create_export(session, wanted, owner=caller, limits=settings.limits)
        queued.append(created.id)
        return created, f"/api/v1/exports/{created.id}"

    answer = once.answer(body, create)
    for export_id in queued:
        # The worker looks for exports whenever it looks for runs.
        doorbell.ring_run(export_id)
    return answer


@router.get("", operation_id="list_exports", responses=errors())
def list_exports(
    session: Reading, limit: _Page, checkpoint_id: Annotated[str | None, Query(pattern=ID_PATTERN)] = None
) -> list[Export]:
    """The last exports of all checkpoints, or of one, newest first."""
    return queries.exports(session, checkpoint_id=checkpoint_id, limit=limit)


@router.get("/{export_id}", operation_id="get_export", responses=errors(404))
def get_export(export_id: Id, session: Reading) -> Export:
    """One export: how far it is, and its files with size and sha256."""
    return _found(queries.export(session, export_id), export_id)


@router.post("/{export_id}/cancel", operation_id="cancel_export", responses=errors(403, 404))
def cancel_export(export_id: Id, database: Store) -> Export:
    """End an export; one that has ended already stays as it is."""
    return _changed(database, export_id, queries.cancel_export)


@router.post("/{export_id}/remove", operation_id="remove_export", responses=errors(403, 404))
def remove_export(export_id: Id, database: Store) -> Export:
    """Let the files of an export go; a repository of a hub stays where it is."""
    return _changed(database, export_id, queries.remove_export)


@router.get(
    "/{export_id}/files/{name:path}",
    operation_id="get_export_file",
    response_class=Response,
    responses={**FILE, **errors(404, 410)},
)
def get_export_file(
    export_id: Id, name: FileName, session: Reading, exported: Exported, places: Places, request: Request
) -> Response:
    """A file of an export, with Range; its ETag is its sha256."""
    return places.sent(_stored(export_id, session, exported).file(name, request.headers))


@router.get(
    "/{export_id}/archive",
    operation_id="get_export_archive",
    response_class=Response,
    responses={**ARCHIVE, **errors(404, 410)},
)
def get_export_archive(export_id: Id, session: Reading, exported: Exported, places: Places) -> Response:
    """All files of an export as one uncompressed tar."""
    return places.sent(_stored(export_id, session, exported).archive())


@router.post("/{export_id}/link", operation_id="create_export_link", responses=errors(403, 404, 413, 415))
def create_export_link(export_id: Id, session: Reading, settings: Config, exported: Exported) -> Link:
    """Addresses for a browser, which work without credentials for 15 minutes."""
    stored = _stored(export_id, session, exported)
    expires = int(time.time()) + VALID_SECONDS
    secret, base = settings.signing_secret(), f"exports/{export_id}"
    return Link(
        archive_url=signed_url(secret, f"{base}/archive", expires),
        file_urls={name: signed_url(secret, f"{base}/files/{name}", expires) for name in stored.names()},
        expires_at=datetime.fromtimestamp(expires, UTC),
    )


@signed_router.get(
    "/{export_id}/files/{name:path}",
    operation_id="download_export_file",
    response_class=Response,
    responses={**FILE, **errors(403, 404, 410)},
)
def download_export_file(
    export_id: Id,
    name: FileName,
    expires: Expires,
    signature: Signature,
    session: SignedReading,
    settings: Config,
    exported: Exported,
    places: Places,
    request: Request,
) -> Response:
    """A file of an export by a signed address."""
    require_signature(settings.signing_secret(), f"exports/{export_id}/files/{name}", expires, signature)
    return places.sent(_stored(export_id, session, exported).file(name, request.headers))


@signed_router.get(
    "/{export_id}/archive",
    operation_id="download_export_archive",
    response_class=Response,
    responses={**ARCHIVE, **errors(403, 404, 410)},
)
def download_export_archive(
    export_id: Id,
    expires: Expires,
    signature: Signature,
    session: SignedReading,
    settings: Config,
    exported: Exported,
    places: Places,
) -> Response:
    """All files of an export as one uncompressed tar by a signed address."""
    require_signature(settings.signing_secret(), f"exports/{export_id}/archive", expires, signature)
    return places.sent(_stored(export_id, session, exported).archive())


def _found(export: Export | None, id: str) -> Export:
    if export is None:
        raise not_found("export", id)
    return export


def _changed(database: ProjectDatabase, id: str, change: Callable[[Session, str], None]) -> Export:
    with database.write() as session:
        change(session, id)
        session.expire_all()
        return _found(queries.export(session, id), id)


def _stored(export_id: str, session: Session, exported: ArtifactStore) -> StoredFolder:
    found = queries.export_folder(session, export_id)
    if found is None:
        known = _found(queries.export(session, export_id), export_id)
        raise Refusal(404, f"The export {export_id} has no files here{_why(known)}")
    return stored_export(*found, exported)


def _why(known: Export) -> str:
    if known.removed_at is not None:
        return ": they were let go; export the checkpoint again."
    if known.state == "succeeded":
        return f": they are in {known.result.url if known.result else 'the repository'}."
    return f" as it is {known.state}; wait for it, or ask for another one."
