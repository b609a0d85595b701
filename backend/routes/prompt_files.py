"""Files of prompts that people upload. A spec names one by what it holds, so that a run's data can never change."""

import os
from pathlib import Path
from typing import Annotated, Any

from fastapi import Query, Request, Response
from starlette.concurrency import run_in_threadpool

from backend.access import Principal
from backend.artifact_store import ArtifactStore
from backend.artifacts import upload_key
from backend.cursors import from_cursor
from backend.dependencies import Artifacts, Caller, Config, Cursor, Id, Reading, Store, errors, page_size
from backend.incoming import UploadPlaces, received
from backend.limits import Limits
from backend.locked_route import locked_router
from backend.problems import Refusal, invalid, not_found
from backend.project_database import ProjectDatabase
from backend.prompt_files import SUFFIXES, NamedFile, PromptFile, PromptLook, PromptUpload
from backend.prompt_intake import looked_at, written
from backend.queries import prompt_files as queries
from backend.request_bodies import FILE_TYPE
from backend.settings import Settings
from backend.store_problem import StoreProblem
from engine.findings import Finding
from engine.prompt_map import guessed_map
from engine.uploaded_prompts import upload_folder, upload_path

router = locked_router(tags=["prompt files"])

_Page = Annotated[int, page_size(100)]
_FILE: dict[str, Any] = {
    "requestBody": {
        "description": "The file as it is.",
        "required": True,
        "content": {FILE_TYPE: {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post(
    "/prompt-looks", operation_id="look_at_prompts", responses=errors(403, 413, 415), openapi_extra=_FILE
)  # fmt: skip
async def look_at_prompts(request: Request, settings: Config, asked: Annotated[NamedFile, Query()]) -> PromptLook:
    """What is in a JSONL, CSV or Parquet file: its columns, its first rows, and what they may be. Nothing is stored."""
    suffix = _suffix(asked.name)
    with _places(request).place():
        async with received(request, upload_folder(settings.home), suffix, settings.limits) as path:
            found = await run_in_threadpool(looked_at, path, settings.limits)
    return PromptLook(columns=found.columns, first=found.first, guess=guessed_map(found.columns))


@router.post(
    "/prompt-files",
    operation_id="upload_prompts",
    status_code=201,
    responses={200: {"description": "The project has these prompts already.", "model": PromptFile}, **errors(403, 409, 413, 415)},
    openapi_extra=_FILE,
)  # fmt: skip
async def upload_prompts(
    request: Request,
    response: Response,
    settings: Config,
    store: Artifacts,
    database: Store,
    caller: Caller,
    asked: Annotated[PromptUpload, Query()],
) -> PromptFile:
    """Store the prompts of a JSONL, CSV or Parquet file. Its bad rows are named by their line, and then nothing is stored."""
    suffix = _suffix(asked.name)
    with _places(request).place():
        async with received(request, upload_folder(settings.home), suffix, settings.limits) as path:
            stored, is_new = await run_in_threadpool(_store, path, asked, settings, store, database, caller)
    response.status_code = 201 if is_new else 200
    response.headers["Location"] = f"/api/v1/prompt-files/{stored.id}"
    return stored


@router.get("/prompt-files", operation_id="list_prompt_files", responses=errors())
def list_prompt_files(session: Reading, limit: _Page, cursor: Cursor = None) -> list[PromptFile]:
    """Uploaded files of prompts, newest first; a cursor is a file's place in that order (see next_cursor of runs)."""
    return queries.prompt_files(session, before=from_cursor(cursor) if cursor else None, limit=limit)


@router.get("/prompt-files/{prompt_file_id}", operation_id="get_prompt_file", responses=errors(404))
def get_prompt_file(prompt_file_id: Id, session: Reading) -> PromptFile:
    """One uploaded file of prompts."""
    found = queries.prompt_file(session, prompt_file_id)
    if found is None:
        raise not_found("prompt file", prompt_file_id)
    return found


@router.delete(
    "/prompt-files/{prompt_file_id}", operation_id="delete_prompt_file", responses=errors(403, 404, 409, 413, 415)
)
def delete_prompt_file(prompt_file_id: Id, database: Store) -> PromptFile:
    """Delete a file that no run reads; the disk has its space back within a day."""
    with database.write() as session:
        removed = queries.remove(session, prompt_file_id)
    if removed is None:
        raise not_found("prompt file", prompt_file_id)
    return removed


def _store(
    source: Path,
    asked: PromptUpload,
    settings: Settings,
    store: ArtifactStore,
    database: ProjectDatabase,
    caller: Principal,
) -> tuple[PromptFile, bool]:
    target = source.with_suffix(".stored")
    limits: Limits = settings.limits
    try:
        intake = written(source, target, asked, limits)
        # Whatever lies there has the same name and so the same content, or is damaged.
        os.replace(target, upload_path(settings.home, intake.sha256))
        store.keep_file(upload_key(intake.sha256), upload_path(settings.home, intake.sha256))
    except StoreProblem as problem:
        raise Refusal(503, str(problem), headers={"Retry-After": "5"}) from None
    finally:
        target.unlink(missing_ok=True)
    with database.write() as session:
        id, is_new = queries.keep(session, asked, intake, owner=caller, limits=limits)
        stored = queries.prompt_file(session, id)
    assert stored is not None, "it was stored in this transaction"
    return stored, is_new


def _suffix(name: str) -> str:
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        message = (
            f"name is {name!r}, which ends with none of {', '.join(SUFFIXES)}; save the file in one of these formats."
        )
        raise invalid([Finding(field="name", message=message)])
    return SUFFIXES[suffix]


def _places(request: Request) -> UploadPlaces:
    places: UploadPlaces = request.app.state.upload_places
    return places
