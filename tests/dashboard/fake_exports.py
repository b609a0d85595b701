"""Exports in each state, as the API would tell of them: of one checkpoint alone."""

from datetime import timedelta
from typing import Any, get_args

from fake_records import NOW
from fake_traces import HOSTILE
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from backend.analyses import AnalysisState
from backend.exports import Export, ExportCreate
from backend.schemas import Link
from engine.export_spec import ExportChoice, ExportResult, GgufFile, HubRepository, MergedFolder
from engine.findings import Finding, findings_of
from engine.manifest import ManifestFile

router = APIRouter(prefix="/exports")
_CHECKPOINT = "r-p8.80"
_CHOICES: dict[AnalysisState, ExportChoice] = {
    "queued": HubRepository(repository="lab/prefix-8", dtype="bfloat16"), "running": GgufFile(file_type="q8_0"),
    "succeeded": MergedFolder(dtype="float16"), "failed": GgufFile(), "cancelled": MergedFolder(),
}  # fmt: skip
_let_go: set[str] = set()


def _result(kind: Any) -> ExportResult:
    names = {"model.safetensors": 224_700, "config.json": 712, "README.md": 2_100}
    files = [ManifestFile(name=name, num_bytes=size, sha256=f"{size:064x}") for name, size in names.items()]
    notes = [f"LoRA of rank 4 is merged into the weights of the base. {HOSTILE}"]
    return ExportResult(kind=kind, files=files, is_kept=True, notes=notes, seconds=2.5)


def _export(state: AnalysisState, choice: ExportChoice | None = None) -> Export:
    failed = [Finding(field="export.kind", message=f"The student's tokenizer is none that llama.cpp knows ({HOSTILE})")]
    wanted = choice or _CHOICES[state]
    return Export(
        id=f"x-{state}", created_at=NOW, created_by="local", checkpoint_id=_CHECKPOINT, run_id="r-p8", run_name="prefix 8", step=80,
        export=wanted, state=state, queue_position=3 if state == "queued" else None,
        done={"running": 0.4, "succeeded": 1.0}.get(state, 0.0), detail="converting to q8_0: 57 MiB of 138 MiB",
        eta_seconds=12.0 if state == "running" else None, findings=failed if state == "failed" else [],
        result=_result(wanted.kind) if state == "succeeded" else None,
        removed_at=NOW if f"x-{state}" in _let_go else None, started_at=NOW, finished_at=None,
    )  # fmt: skip


@router.get("")
def exports(checkpoint_id: str | None = None) -> list[Export]:
    return [_export(state) for state in get_args(AnalysisState)] if checkpoint_id == _CHECKPOINT else []


@router.get("/{export_id}")
def export(export_id: str) -> Export:
    return _export(export_id.removeprefix("x-"))  # type: ignore[arg-type]


@router.post("", response_model=None)
def create(body: dict[str, Any]) -> Export | JSONResponse:
    try:
        wanted = ExportCreate.model_validate(body)
    except ValidationError as error:
        found = findings_of(error, body)
        said = {"type": "about:blank", "title": "Invalid", "status": 422, "detail": found[0].message, "instance": "/"}
        return JSONResponse(said | {"errors": [one.model_dump() for one in found]}, 422)
    return _export("queued", wanted.export)


@router.post("/{export_id}/cancel")
def cancel(export_id: str) -> Export:
    assert export_id in ("x-queued", "x-running")
    return _export("cancelled")


@router.post("/{export_id}/remove")
def remove(export_id: str) -> Export:
    _let_go.add(export_id)
    return _export("succeeded")


@router.post("/{export_id}/link")
def link(export_id: str) -> Link:
    base = f"/api/v1/download/exports/{export_id}"
    urls = {file.name: f"{base}/files/{file.name}?signature=abc" for file in _result("merged").files}
    return Link(archive_url=f"{base}/archive?signature=abc", file_urls=urls, expires_at=NOW + timedelta(minutes=10))
