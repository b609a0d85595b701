"""Saved views of a process. Never shipped."""

from typing import Annotated, Any

import fake_records as records
import fake_traces as traces
from fastapi import APIRouter, Header
from fastapi.responses import JSONResponse

from backend.saved_views import SavedView, SavedViewWrite, etag_of
from backend.schemas import Problem

router = APIRouter(prefix="/api/v1/views")
_views: dict[str, SavedView] = {}


def _keep(id: str, wanted: SavedViewWrite) -> SavedView:
    now = records.NOW
    _views[id] = SavedView(id=id, created_by="local", created_at=now, updated_at=now, **wanted.model_dump())
    return _views[id]


_keep("v-0", SavedViewWrite(name=f"16 {traces.HOSTILE}", note="*Enough*?", query="runs=r-p8%2Cr-p16&x=Trained+tokens"))
_keep("v-1", SavedViewWrite(name="to be edited", query="runs=r-p8"))
_keep("v-2", SavedViewWrite(name="to be edited by two", query="runs=r-p8"))


@router.get("")
def views() -> list[SavedView]:
    return list(_views.values())


@router.post("", status_code=201)
def create(body: SavedViewWrite) -> SavedView:
    return _keep(f"v-{len(_views)}-{body.name}", body)


@router.put("/{view_id}")
def update(view_id: str, body: SavedViewWrite, if_match: Annotated[str, Header()]) -> Any:
    if if_match != etag_of(_views[view_id]):
        problem = Problem(
            type="about:blank", title="Problem", status=412, detail="The view was changed since.", instance="/"
        )
        return JSONResponse(problem.model_dump(), 412, media_type="application/problem+json")
    return _keep(view_id, body)


@router.post("/{view_id}/remove")
def remove(view_id: str) -> SavedView:
    return _views.pop(view_id)
