"""What an export means to a worker: the checkpoint's folder, and what a model card says of its history."""

import re
from pathlib import Path

from sqlalchemy.orm import Session

from backend.artifact_store import ArtifactStore
from backend.downloads import stored_checkpoint
from backend.exports import ExportCreate, QueuedExport
from backend.ids import new_id
from backend.problems import Refusal, invalid
from backend.queries.checkpoints import checkpoint
from backend.queries.history import evaluations
from backend.queries.runs import run
from backend.schemas import Evaluation
from engine.export_spec import CardFacts, ExportSpec
from engine.findings import Finding

_NOT_HARMLESS = re.compile(r"[^A-Za-z0-9]+")
_MAX_NAME = 60  # characters of a run's name in a file's


def resolved_export(session: Session, asked: ExportCreate, home: Path, store: ArtifactStore) -> QueuedExport:
    """The export for a worker; Refusal (422) when the checkpoint is not there, or its files are not."""
    found = checkpoint(session, asked.checkpoint_id)
    if found is None:
        raise _refused(
            f"checkpoint_id is {asked.checkpoint_id!r}, which does not exist or was removed; choose another one."
        )
    record, _ = found
    try:
        stored = stored_checkpoint(*found, store)
        stored.check()
    except Refusal as refusal:
        raise _refused(f"checkpoint_id is that of {record.run_name} at step {record.step}: {refusal.detail}") from None
    of_run = run(session, record.run_id)
    assert of_run is not None, "a checkpoint belongs to a run"
    measured = [one for one in evaluations(session, record.run_id) if one.split == "dev"]
    student = _of(measured, "student", record.step)
    base = next((one for one in measured if one.subject == "base"), None)
    card = CardFacts(
        run_id=record.run_id,
        run_name=record.run_name,
        experiment_name=record.experiment_name,
        step=record.step,
        spec=of_run.spec,
        num_prompts=None if student is None else student.num_prompts,
        metrics={} if student is None else student.metrics,
        base_metrics={} if base is None else base.metrics,
        training_flops=None if student is None else student.training_flops,
    )
    spec = ExportSpec(
        id=new_id(),
        folder=f"home:{stored.folder.relative_to(home).as_posix()}",
        manifest_sha256=record.manifest_sha256,
        title=f"{_NOT_HARMLESS.sub('-', record.run_name).strip('-')[:_MAX_NAME] or 'run'}-step-{record.step}",
        export=asked.export,
        card=card,
    )
    return QueuedExport(asked=asked, spec=spec, run_id=record.run_id)


def _of(measured: list[Evaluation], subject: str, step: int) -> Evaluation | None:
    return next((one for one in measured if one.subject == subject and one.step == step), None)


def _refused(message: str) -> Refusal:
    return invalid([Finding(field="checkpoint_id", message=message)])
