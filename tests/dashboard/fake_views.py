"""Saved views of a process. Never shipped."""

import fake_records as records
import fake_traces as traces
from fastapi import APIRouter

from backend.saved_views import SavedView, SavedViewWrite

router = APIRouter(prefix="/api/v1/views")
_views: dict[str, SavedView] = {}


def _keep(id: str, wanted: SavedViewWrite) -> SavedView:
    now = records.NOW
    _views[id] = SavedView(id=id, created_by="local", created_at=now, updated_at=now, **wanted.model_dump())
    return _views[id]


_keep("v-0", SavedViewWrite(name=f"16 {traces.HOSTILE}", note="*Enough*?", query="runs=r-p8%2Cr-p16&x=Trained+tokens"))


@router.get("")
def views() -> list[SavedView]:
    return list(_views.values())


@router.post("", status_code=201)
def create(body: SavedViewWrite) -> SavedView:
    return _keep(f"v-{len(_views)}-{body.name}", body)


@router.post("/{view_id}/remove")
def remove(view_id: str) -> SavedView:
    return _views.pop(view_id)
