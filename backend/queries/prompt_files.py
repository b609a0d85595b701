"""Uploaded files of prompts: kept as rows, named by specs, and not deleted while a run reads them. The caller commits."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Text, cast, delete, func, insert, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from backend.access import Principal
from backend.database import now_of
from backend.ids import new_id
from backend.limits import Limits
from backend.problems import Refusal, invalid
from backend.project_database import EVERY_PROJECT
from backend.prompt_file_records import PromptFile as Row
from backend.prompt_file_records import PromptFileUse
from backend.prompt_files import PromptFile, PromptUpload
from backend.tables import Analysis, Preflight
from engine.findings import Finding
from engine.prompt_intake import Intake
from engine.prompt_reference import UploadedPrompts, parsed_reference
from engine.spec import RunSpec
from engine.uploaded_prompts import upload_reference

_NUM_RUNS = select(func.count()).where(PromptFileUse.prompt_file_id == Row.id).correlate(Row).scalar_subquery()


def keep(
    session: Session, wanted: PromptUpload, intake: Intake, *, owner: Principal, limits: Limits
) -> tuple[str, bool]:
    """Store a file's row; its id, and whether it is new: the same prompts in the same project are one file."""
    project = owner.home_project
    same = select(Row.id).where(Row.project_id == project, Row.sha256 == intake.sha256)
    if (known := session.scalar(same)) is not None:
        return known, False
    count = session.scalar(select(func.count()).select_from(Row).where(Row.project_id == project)) or 0
    if count >= limits.prompt_files:
        raise Refusal(
            409, f"The project has {count} files of prompts, as many as it may; delete some that no run reads."
        )
    row = Row(
        id=new_id(), project_id=project, created_by=owner.id, created_at=now_of(session), name=wanted.name, sha256=intake.sha256,
        num_rows=intake.num_rows, num_bytes=intake.num_bytes, map=wanted.model_dump(exclude={"name"}),
        system_message=intake.system_message, first=intake.first,
    )  # fmt: skip
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError:  # somebody else sends the same at this moment
        return session.execute(same).scalar_one(), False
    return row.id, True


def prompt_files(session: Session, *, before: str | None, limit: int) -> list[PromptFile]:
    """Files, newest first, those behind id `before`."""
    query = select(Row, _NUM_RUNS).order_by(Row.id.desc()).limit(limit)
    if before is not None:
        query = query.where(Row.id < before)
    return [_told(row, num_runs) for row, num_runs in session.execute(query).all()]


def prompt_file(session: Session, id: str) -> PromptFile | None:
    """One file."""
    found = session.execute(select(Row, _NUM_RUNS).where(Row.id == id)).one_or_none()
    return None if found is None else _told(*found)


def remove(session: Session, id: str) -> PromptFile | None:
    """Delete a file's row and tell what it was; Refusal (409) while something reads it. The disk follows, see worker/garbage.py."""
    locked = session.execute(select(Row).where(Row.id == id).with_for_update()).scalar_one_or_none()
    found = None if locked is None else prompt_file(session, id)
    if found is None:
        return None
    if found.num_runs:
        raise Refusal(
            409,
            f"{found.num_runs} runs read {found.name!r}, which therefore stays; only files that no run reads can go.",
        )
    if _is_asked_for(session, found.reference):
        raise Refusal(
            409, f"A check or an analysis reads {found.name!r} at this moment; delete it when that has ended."
        )
    session.execute(delete(Row).where(Row.id == id))
    return found


def require_uploads(session: Session, project_id: str, specs: Iterable[RunSpec]) -> dict[str, str]:
    """Ids, by sha256, of the uploads that specs name, which nobody deletes before the caller commits.

    Refusal (422) when the project does not have one.
    """
    named = {sha256: (field, reference) for spec in specs for field, reference, sha256 in _uploads(spec)}
    if not named:
        return {}
    mine = select(Row.sha256, Row.id).where(Row.project_id == project_id, Row.sha256.in_(named))
    known = dict(session.execute(mine.order_by(Row.id).with_for_update(read=True)).all())
    missing = [
        Finding(
            field=field,
            message=f"{field} is {reference!r}, but this project has no such upload; upload the file, or choose one of the list.",
        )
        for sha256, (field, reference) in named.items()
        if sha256 not in known
    ]
    if missing:
        raise invalid(missing)
    return known


def note_uses(session: Session, project_id: str, runs: Sequence[tuple[str, RunSpec]]) -> None:
    """Note which runs, by their id, read which uploads; Refusal (422) when the project does not have one."""
    ids = require_uploads(session, project_id, [spec for _, spec in runs])
    rows = [
        {"run_id": run_id, "prompt_file_id": id}
        for run_id, spec in runs
        for id in sorted({ids[sha256] for _, _, sha256 in _uploads(spec)})
    ]
    if rows:
        session.execute(insert(PromptFileUse), rows)


def known_sha256(session: Session, sha256: Sequence[str]) -> set[str]:
    """Which of these are in the list of any project."""
    query = select(Row.sha256).where(Row.sha256.in_(sha256)).distinct()
    return set(session.scalars(query, execution_options=EVERY_PROJECT))


def _uploads(spec: RunSpec) -> list[tuple[str, str, str]]:
    """Field, reference and sha256 of the uploads that a spec names."""
    named = {
        "prompts.path": spec.prompts.path,
        "evaluation.path": spec.evaluation.path,
        "evaluation.report_path": spec.evaluation.report_path,
    }
    parsed = [(field, reference, parsed_reference(reference)) for field, reference in named.items() if reference]
    return [(field, reference, one.sha256) for field, reference, one in parsed if isinstance(one, UploadedPrompts)]


def _is_asked_for(session: Session, reference: str) -> bool:
    waiting: list[tuple[Any, ColumnElement[bool]]] = [
        (kind, or_(kind.state == "queued", kind.state == "running") & cast(kind.spec, Text).contains(reference))
        for kind in (Preflight, Analysis)
    ]
    return any(session.scalar(select(kind.id).where(condition).limit(1)) is not None for kind, condition in waiting)


def _told(row: Row, num_runs: int) -> PromptFile:
    return PromptFile(
        id=row.id, name=row.name, reference=upload_reference(row.sha256), sha256=row.sha256, num_rows=row.num_rows,
        num_bytes=row.num_bytes, map=row.map, system_message=row.system_message, first=row.first, num_runs=num_runs,
        created_at=row.created_at, created_by=row.created_by,
    )  # fmt: skip
