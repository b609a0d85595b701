"""Analyses: asked for, claimed, reported on and answered. Every write of a worker carries its fence.

Questions of the playground and exports go the same way: how they are asked for and read is in playground.py and exports.py.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session

from backend.access import LOCAL, Principal
from backend.analyses import Analysis
from backend.asked import Asked, Found
from backend.database import now_of
from backend.exports import EXPORT
from backend.ids import new_id
from backend.playground import PLAYGROUND
from backend.project_database import EVERY_PROJECT
from backend.queries.readable import oldest_readable
from backend.queries.runs import project_of
from backend.tables import Analysis as AnalysisRow
from engine.analysis_spec import AnalysisProgress, AnalysisSpec
from engine.findings import Finding

LEASE_SECONDS = 60
_MAX_ATTEMPTS = 3  # an analysis whose workers die again and again is given up
_OTHER_KINDS = (PLAYGROUND, EXPORT)
_IS_ANALYSIS = AnalysisRow.kind.not_in(_OTHER_KINDS)


@dataclass(frozen=True)
class AnalysisClaim:
    """The right to work on an analysis."""

    analysis_id: str
    fence: int
    spec: Asked


def create_analysis(
    session: Session, spec: AnalysisSpec, *, owner: Principal = LOCAL, run_id: str | None = None
) -> Analysis:
    """Queue an analysis, of a run if one is named."""
    return _record(queued(session, spec, spec.analysis.kind, owner, run_id=run_id))


def queued(
    session: Session,
    spec: Asked,
    kind: str,
    owner: Principal,
    *,
    id: str | None = None,
    run_id: str | None = None,
    checkpoint_id: str | None = None,
) -> AnalysisRow:
    """A new row in the queue, under an id of its own unless it has one already.

    What is asked of a run belongs to the run's project: a key of all projects may ask, and others than that project's
    people shall not read it.
    """
    row = AnalysisRow(
        id=id or new_id(),
        project_id=owner.home_project if run_id is None else project_of(session, run_id),
        created_by=owner.id,
        created_at=now_of(session),
        spec=spec,
        kind=kind,
        state="queued",
        findings=[],
        detail="",
        done=0.0,
        checkpoint_id=checkpoint_id,
    )
    session.add(row)
    session.flush()
    return row


def analysis(session: Session, id: str) -> Analysis | None:
    """One analysis with its result, if there is one."""
    row = session.get(AnalysisRow, id)
    return None if row is None or row.kind in _OTHER_KINDS else _record(row)


def analyses(session: Session, *, limit: int) -> list[Analysis]:
    """The last analyses, newest first."""
    query = select(AnalysisRow).where(_IS_ANALYSIS).order_by(AnalysisRow.id.desc()).limit(limit)
    return [_record(row) for row in session.scalars(query)]


def cancel_analysis(session: Session, id: str) -> None:
    """End an analysis that waits or is at work; its worker notices at its next report."""
    cancel(session, id, _IS_ANALYSIS)


def cancel(session: Session, id: str, is_asked: ColumnElement[bool]) -> None:
    """End a row that waits or is at work, if it is of the kind that is asked for."""
    session.execute(
        update(AnalysisRow)
        .where(AnalysisRow.id == id, is_asked, AnalysisRow.state.in_(("queued", "running")))
        .values(state="cancelled", fence=AnalysisRow.fence + 1, finished_at=now_of(session), **_NO_LEASE)
        .execution_options(synchronize_session=False)
    )


def has_claimable_analysis(session: Session, *, beside: Collection[str] = ()) -> bool:
    """Whether an analysis waits for a worker."""
    waiting = select(AnalysisRow.id).where(AnalysisRow.state == "queued", AnalysisRow.id.not_in(beside))
    return session.scalar(waiting.limit(1)) is not None


def claim_analysis(session: Session, owner: str, *, unreadable: set[str] | None = None) -> AnalysisClaim | None:
    """The oldest queued analysis, now held by `owner`; None when there is none. See oldest_readable."""
    now = now_of(session)
    next_id = oldest_readable(session, AnalysisRow, set() if unreadable is None else unreadable)
    if next_id is None:
        return None
    row = session.execute(
        update(AnalysisRow)
        .where(AnalysisRow.id == next_id, AnalysisRow.state == "queued")
        .values(
            state="running",
            fence=AnalysisRow.fence + 1,
            attempt=AnalysisRow.attempt + 1,
            lease_owner=owner,
            lease_until=now + timedelta(seconds=LEASE_SECONDS),
            started_at=now,
            done=0.0,
            detail="starting",
        )
        .returning(AnalysisRow.id, AnalysisRow.fence, AnalysisRow.spec)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return None if row is None else AnalysisClaim(analysis_id=row.id, fence=row.fence, spec=row.spec)


def report_progress(session: Session, claim: AnalysisClaim, progress: AnalysisProgress | None) -> bool:
    """Extend the lease and store how far the work is; False when the claim is lost, for instance by a cancel."""
    news = {} if progress is None else {"done": progress.done, "detail": progress.detail}
    return _write(session, claim, lease_until=now_of(session) + timedelta(seconds=LEASE_SECONDS), **news)


def end_analysis(
    session: Session, claim: AnalysisClaim, answer: Found | list[Finding], traces: bytes | None = None
) -> bool:
    """Store the result, or the findings that say why there is none; False when the claim was lost meanwhile.

    It may be called again when nobody knows whether it was stored, since the connection broke at the commit.
    """
    if isinstance(answer, list):
        values: dict[str, object] = {"state": "failed", "findings": [one.model_dump(mode="json") for one in answer]}
    else:
        values = {"state": "succeeded", "result": answer, "traces": traces, "done": 1.0, "detail": "done"}
    return _write(session, claim, finished_at=now_of(session), **values, **_NO_LEASE) or _is_ended_by(session, claim)


def _is_ended_by(session: Session, claim: AnalysisClaim) -> bool:
    """Whether this claim's holder has ended it: whoever else does so raises the fence."""
    is_same = (AnalysisRow.id == claim.analysis_id, AnalysisRow.fence == claim.fence)
    state = session.scalar(select(AnalysisRow.state).where(*is_same))
    return state in ("succeeded", "failed")


def give_back_analysis(session: Session, claim: AnalysisClaim) -> None:
    """Queue it again: its worker is about to end and another will do it."""
    _write(session, claim, state="queued", attempt=AnalysisRow.attempt - 1, done=0.0, detail="", **_NO_LEASE)


def take_back_analyses(session: Session) -> int:
    """Queue the analyses whose worker is gone again, or fail them after three workers; how many there were."""
    is_lost = (AnalysisRow.state == "running") & or_(
        AnalysisRow.lease_until.is_(None), AnalysisRow.lease_until < now_of(session)
    )
    message = f"The workers that had this died {_MAX_ATTEMPTS} times; see their logs, then ask for less at once."
    hopeless = {"state": "failed", "findings": [Finding(field="", message=message).model_dump(mode="json")]}
    taken = 0
    for condition, values in (
        (AnalysisRow.attempt >= _MAX_ATTEMPTS, hopeless | {"finished_at": now_of(session)}),
        (AnalysisRow.attempt < _MAX_ATTEMPTS, {"state": "queued", "detail": ""}),
    ):
        ended = session.execute(
            update(AnalysisRow)
            .where(is_lost, condition)
            .values(fence=AnalysisRow.fence + 1, **values, **_NO_LEASE)
            .returning(AnalysisRow.id)
            .execution_options(synchronize_session=False)
        )
        taken += len(ended.all())
    return taken


def extend_analysis_leases(session: Session) -> None:
    """Give every holder a full lease from now on: after a jump of the clock nobody has had the chance to renew."""
    session.execute(
        update(AnalysisRow)
        .where(AnalysisRow.state == "running")
        .values(lease_until=now_of(session) + timedelta(seconds=LEASE_SECONDS))
        .execution_options(synchronize_session=False)
    )


def unclaimed_analyses(session: Session, *, silent_seconds: float) -> list[str]:
    """Ids of the queued analyses for which nobody rang lately; from now on somebody has."""
    now = now_of(session)
    lately = now - timedelta(seconds=silent_seconds)
    rung = session.execute(
        update(AnalysisRow)
        .where(
            AnalysisRow.state == "queued",
            AnalysisRow.created_at < lately,
            or_(AnalysisRow.last_rung_at.is_(None), AnalysisRow.last_rung_at < lately),
        )
        .values(last_rung_at=now)
        .returning(AnalysisRow.id)
        .execution_options(synchronize_session=False)
    )
    return sorted(rung.scalars())


_NO_LEASE = {"lease_owner": None, "lease_until": None}


def _write(session: Session, claim: AnalysisClaim, **values: object) -> bool:
    written = session.execute(
        update(AnalysisRow)
        .where(AnalysisRow.id == claim.analysis_id, AnalysisRow.fence == claim.fence, AnalysisRow.state == "running")
        .values(**values)
        .returning(AnalysisRow.id)
        .execution_options(synchronize_session=False)
    )
    return written.one_or_none() is not None


def eta_seconds(row: AnalysisRow) -> float | None:
    """Seconds that are left at the present pace; None while nothing is known."""
    if row.state != "running" or row.started_at is None or not row.done > 0:
        return None
    return max(0.0, (datetime.now(UTC) - row.started_at).total_seconds() / row.done * (1 - row.done))


def queue_position(session: Session, row: AnalysisRow) -> int | None:
    """Its place among all that waits, 1 is the next; None unless it is queued."""
    if row.state != "queued":
        return None
    before = select(func.count()).select_from(AnalysisRow).where(AnalysisRow.state == "queued", AnalysisRow.id < row.id)
    return 1 + (session.scalar(before, execution_options=EVERY_PROJECT) or 0)


def _record(row: AnalysisRow) -> Analysis:
    values = {name: getattr(row, name) for name in Analysis.model_fields if name != "eta_seconds"}
    return Analysis.model_validate(values | {"eta_seconds": eta_seconds(row)})
