"""Who is at work: worker slots that are heard of, preflights that a worker took, and the one control process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from backend.database import now_of
from backend.queries.readable import oldest_readable
from backend.resources import WorkerCapabilities
from backend.tables import ControlLease, Preflight, Run, Worker
from engine.findings import Finding
from engine.spec import RunSpec

PREFLIGHT_SECONDS = 180
"""A check takes seconds; whoever took longer is gone."""
_CONTROL_SECONDS = 30
_FORGET_WORKERS_AFTER = timedelta(hours=1)


@dataclass(frozen=True)
class PreflightClaim:
    """The right to answer a preflight."""

    preflight_id: str
    fence: int
    spec: RunSpec


def _own_clock() -> datetime:
    return datetime.now(UTC)


def keep_worker(
    session: Session,
    worker_id: str,
    *,
    host: str,
    boot_id: str,
    pid: int,
    pid_started: float,
    slot: str,
    capabilities: WorkerCapabilities,
    clock: Callable[[], datetime] = _own_clock,
) -> None:
    """Say that a worker's slot is there, busy or idle. `clock` is its machine's, which is compared with the database's."""
    now = now_of(session)
    offset = (clock() - now).total_seconds()
    worker = session.get(Worker, worker_id)
    if worker is not None:
        worker.heartbeat_at, worker.capabilities = now, capabilities.model_dump(exclude_none=True)
        worker.clock_offset_seconds = offset
        return
    session.add(
        Worker(
            id=worker_id,
            host=host,
            boot_id=boot_id,
            pid=pid,
            pid_started=pid_started,
            slot=slot,
            started_at=now,
            heartbeat_at=now,
            clock_offset_seconds=offset,
            capabilities=capabilities.model_dump(exclude_none=True),
        )
    )


def set_worker_run(session: Session, worker_id: str, run_id: str | None) -> None:
    """Note the run or the analysis that a slot works on."""
    session.execute(update(Worker).where(Worker.id == worker_id).values(run_id=run_id))


def is_idle(session: Session, worker_id: str) -> bool:
    """Whether a slot has nothing to do and is not being drained."""
    free = (Worker.id == worker_id, Worker.run_id.is_(None), Worker.draining_since.is_(None))
    return session.execute(select(Worker.id).where(*free)).first() is not None


def at_work(session: Session, worker_ids: Sequence[str]) -> set[str]:
    """Those of these slots that are noted as working on something."""
    return set(session.scalars(select(Worker.id).where(Worker.id.in_(worker_ids), Worker.run_id.is_not(None))))


def remove_worker(session: Session, worker_id: str) -> None:
    """A worker that ends in an orderly way leaves the list at once."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def forget_silent_workers(session: Session) -> None:
    """Drop the slots that have not been heard of for an hour."""
    session.execute(delete(Worker).where(Worker.heartbeat_at < now_of(session) - _FORGET_WORKERS_AFTER))


def claim_preflight(session: Session, owner: str, *, unreadable: set[str] | None = None) -> PreflightClaim | None:
    """The oldest queued preflight, now held by `owner`; None when there is none. See oldest_readable."""
    now = now_of(session)
    next_id = oldest_readable(session, Preflight, set() if unreadable is None else unreadable)
    if next_id is None:
        return None
    row = session.execute(
        update(Preflight)
        .where(Preflight.id == next_id, Preflight.state == "queued")
        .values(
            state="running",
            fence=Preflight.fence + 1,
            lease_owner=owner,
            lease_until=now + timedelta(seconds=PREFLIGHT_SECONDS),
            started_at=now,
        )
        .returning(Preflight.id, Preflight.fence, Preflight.spec)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    return None if row is None else PreflightClaim(preflight_id=row.id, fence=row.fence, spec=row.spec)


def end_preflight(
    session: Session, claim: PreflightClaim, *, findings: list[Finding], facts: dict[str, Any], is_answered: bool
) -> None:
    """Store the answer, or why there is none, unless the preflight was given up meanwhile."""
    session.execute(
        update(Preflight)
        .where(Preflight.id == claim.preflight_id, Preflight.fence == claim.fence, Preflight.state == "running")
        .values(
            state="done" if is_answered else "failed",
            findings=[finding.model_dump(mode="json") for finding in findings],
            facts=facts,
            lease_owner=None,
            lease_until=None,
            finished_at=now_of(session),
        )
        .execution_options(synchronize_session=False)
    )


def give_up_preflights(session: Session, *, waiting_seconds: float) -> int:
    """End preflights that no worker took in time, or whose worker is gone; how many there were."""
    now = now_of(session)
    finding = Finding(
        field="",
        message=f"No worker answered the check within {waiting_seconds:.0f} s; start a worker or check again later.",
    )
    is_waiting = (Preflight.state == "queued") & (Preflight.created_at < now - timedelta(seconds=waiting_seconds))
    is_lost = (Preflight.state == "running") & or_(Preflight.lease_until.is_(None), Preflight.lease_until < now)
    ended = session.execute(
        update(Preflight)
        .where(is_waiting | is_lost)
        .values(
            state="failed",
            fence=Preflight.fence + 1,
            findings=[finding.model_dump(mode="json")],
            lease_owner=None,
            lease_until=None,
            finished_at=now,
        )
        .returning(Preflight.id)
        .execution_options(synchronize_session=False)
    )
    return len(ended.all())


def hold_control(session: Session, owner: str, is_dead: Callable[[str], bool]) -> bool:
    """Become or stay the control process for the next half minute; False while another one is."""
    now = now_of(session)
    lease = session.execute(
        select(ControlLease).where(ControlLease.name == "control").with_for_update()
    ).scalar_one_or_none()
    until = now + timedelta(seconds=_CONTROL_SECONDS)
    if lease is None:
        try:
            with session.begin_nested():
                session.add(ControlLease(name="control", owner=owner, fence=1, lease_until=until))
        except IntegrityError:
            return False
        return True
    if lease.owner != owner and lease.lease_until > now and not is_dead(lease.owner):
        return False
    if lease.owner != owner:
        lease.owner, lease.fence = owner, lease.fence + 1
    lease.lease_until = until
    return True


def release_control(session: Session, owner: str) -> None:
    """Let the next control process begin at once."""
    session.execute(delete(ControlLease).where(ControlLease.name == "control", ControlLease.owner == owner))


def unclaimed(session: Session, *, silent_seconds: float) -> tuple[list[str], list[str]]:
    """Ids of the runs and of the preflights that wait although they are due, and for which nobody rang lately."""
    now = now_of(session)
    lately = now - timedelta(seconds=silent_seconds)
    runs = select(Run.id).where(
        Run.state == "queued",
        Run.desired_state == "run",
        or_(Run.not_before.is_(None), Run.not_before <= now),
        or_(Run.last_rung_at.is_(None), Run.last_rung_at < lately),
    )
    preflights = select(Preflight.id).where(
        Preflight.state == "queued", or_(Preflight.last_rung_at.is_(None), Preflight.last_rung_at < lately)
    )
    return list(session.scalars(runs.order_by(Run.id))), list(session.scalars(preflights.order_by(Preflight.id)))


def note_rung(session: Session, run_ids: list[str], preflight_ids: list[str]) -> None:
    """Remember that the doorbell was rung for these."""
    now = now_of(session)
    session.execute(update(Run).where(Run.id.in_(run_ids)).values(last_rung_at=now))
    session.execute(update(Preflight).where(Preflight.id.in_(preflight_ids)).values(last_rung_at=now))
