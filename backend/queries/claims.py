"""Who may work on a run: claims, leases and state changes, all as conditional UPDATEs.

A claim raises the run's fence; every later write of that attempt carries it, so a worker that was declared dead changes
nothing when it wakes up. Times are the database's. The caller commits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Literal

from sqlalchemy import CursorResult, and_, func, or_, select, update
from sqlalchemy.orm import Session

from backend.database import now_of
from backend.records import Attempt, Event
from backend.schemas import ACTIVE_STATES, RunState
from backend.tables import Run
from engine.spec import RunSpec

LEASE_SECONDS = 60.0
# The old holder has killed its engine by then, whatever the rounding of the two clocks.
_TAKEOVER_DELAY = timedelta(seconds=5)
# Before the first, second, … retry of a lost or crashed attempt; a crash that comes at once must not burn a core.
_RETRY_SECONDS = (0, 10, 60)

Wish = Literal["run", "cancel", "cancel_with_checkpoint"]
HELD_STATES: frozenset[RunState] = ACTIVE_STATES - {"queued"}
_ALLOWED_BEFORE: dict[RunState, frozenset[RunState]] = {
    "running": frozenset({"starting"}),
    "stopping": frozenset({"starting", "running"}),
    "queued": HELD_STATES,
    "succeeded": HELD_STATES,
    "failed": HELD_STATES,
    "cancelled": ACTIVE_STATES,
}


class LeaseLost(Exception):
    """Another worker or the control process has taken the run: nothing that this attempt writes counts any more."""


@dataclass(frozen=True)
class Claim:
    """The right to work on a run until the lease ends."""

    run_id: str
    fence: int
    spec: RunSpec
    attempt: int
    """Attempts without progress, this one included."""
    max_attempts: int


@dataclass(frozen=True)
class Ending:
    """How an attempt ends, and the state that its run is left in."""

    state: RunState
    reason: str
    """One sentence for the run's history."""
    exit_code: int | None = None
    failure_kind: str | None = None
    failure_message: str | None = None
    counts: bool = True
    """Whether an attempt that returns to the queue counts against max_attempts; a planned shutdown does not."""


def claim_run(session: Session, *, owner: str, host: str, boot_id: str) -> Claim | None:
    """The most urgent queued run (priority, then age), now held by `owner`; None when there is none."""
    now = now_of(session)
    next_id = (
        select(Run.id)
        .where(Run.state == "queued", Run.desired_state == "run", or_(Run.not_before.is_(None), Run.not_before <= now))
        .order_by(Run.priority.desc(), Run.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    row = session.execute(
        update(Run)
        .where(Run.id == next_id, Run.state == "queued")
        .values(
            state="starting",
            fence=Run.fence + 1,
            attempt=Run.attempt + 1,
            lease_owner=owner,
            lease_until=now + timedelta(seconds=LEASE_SECONDS),
            heartbeat_at=now,
            started_at=func.coalesce(Run.started_at, now),
            ready_at=None,
        )
        .returning(Run.id, Run.fence, Run.spec, Run.attempt, Run.max_attempts)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if row is None:
        return None
    session.add(Attempt(run_id=row.id, fence=row.fence, worker_id=owner, host=host, boot_id=boot_id, started_at=now))
    session.flush()
    _add_state_event(session, row.id, row.fence, "starting", f"Claimed by {owner}.")
    return Claim(run_id=row.id, fence=row.fence, spec=row.spec, attempt=row.attempt, max_attempts=row.max_attempts)


def has_claimable_run(session: Session) -> bool:
    """Whether a claim would find a run now."""
    now = now_of(session)
    due = or_(Run.not_before.is_(None), Run.not_before <= now)
    return (
        session.execute(select(Run.id).where(Run.state == "queued", Run.desired_state == "run", due).limit(1)).first()
        is not None
    )


def renew_lease(session: Session, run_id: str, fence: int) -> None:
    """Keep the run for another LEASE_SECONDS. Raises LeaseLost."""
    now = now_of(session)
    hold(session, run_id, fence, lease_until=now + timedelta(seconds=LEASE_SECONDS), heartbeat_at=now)


def hold(session: Session, run_id: str, fence: int, **columns: Any) -> None:
    """Write columns of a run that this fence holds, and lock its row until the commit. Raises LeaseLost."""
    result = session.execute(
        update(Run)
        .where(Run.id == run_id, Run.fence == fence, Run.state.in_(HELD_STATES))
        .values(columns or {"fence": fence})
        .execution_options(synchronize_session=False)
    )
    if _num_rows(result) == 0:
        raise LeaseLost(f"Fence {fence} does not hold run {run_id} any more.")


def wish_of(session: Session, run_id: str) -> Wish:
    """What people want of the run."""
    query = select(Run.desired_state, Run.checkpoint_on_cancel).where(Run.id == run_id)
    state, with_checkpoint = session.execute(query).one()
    if state == "run":
        return "run"
    return "cancel_with_checkpoint" if with_checkpoint else "cancel"


def cancel_queued(session: Session) -> None:
    """Cancel the runs that nobody works on and that people do not want any more."""
    unwanted = select(Run.id).where(Run.state == "queued", Run.desired_state == "cancel")
    for run_id in session.scalars(unwanted.with_for_update(skip_locked=True)).all():
        change_state(session, run_id, "cancelled", reason="Cancelled as asked, before a worker took it.")


def set_engine_process(session: Session, claim: Claim, *, pid: int, pid_started: float | None) -> None:
    """Note the engine process of an attempt."""
    session.execute(
        update(Attempt)
        .where(Attempt.run_id == claim.run_id, Attempt.fence == claim.fence)
        .values(pid=pid, pid_started=pid_started)
    )


def change_state(
    session: Session,
    run_id: str,
    to: RunState,
    *,
    reason: str,
    fence: int | None = None,
    columns: Mapping[str, Any] = MappingProxyType({}),
) -> bool:
    """Move a run to another state and write that into its history; False when it is not in a state that allows it.

    `fence` restricts the change to the attempt that holds the run; without one, any holder's run changes. `columns` are
    written with it.
    """
    now = now_of(session)
    values: dict[str, Any] = {"state": to, **columns}
    if to == "queued":
        values["last_rung_at"] = None  # so that the control process rings at its next turn
    if to not in HELD_STATES:
        values |= {"lease_owner": None, "lease_until": None, "phase": ""}
    if to not in ACTIVE_STATES:
        values["finished_at"] = now
    statement = update(Run).where(Run.id == run_id, Run.state.in_(_ALLOWED_BEFORE[to]))
    if fence is not None:
        statement = statement.where(Run.fence == fence)
    result = session.execute(
        statement.values(values).returning(Run.fence).execution_options(synchronize_session=False)
    ).one_or_none()
    if result is None:
        return False
    _add_state_event(session, run_id, result.fence if fence is None else fence, to, reason)
    return True


def end_attempt(session: Session, claim: Claim, ending: Ending) -> None:
    """Close an attempt and leave its run as `ending` says. Raises LeaseLost."""
    hold(session, claim.run_id, claim.fence)
    if ending.state == "queued" and wish_of(session, claim.run_id) != "run":
        ending = replace(ending, state="cancelled", reason="Cancelled as asked.")
    columns: dict[str, Any] = {"failure_kind": ending.failure_kind, "failure_message": ending.failure_message}
    if ending.state == "queued":
        columns["not_before"] = _retry_time(now_of(session), claim.attempt) if ending.counts else None
        if not ending.counts:
            columns["attempt"] = Run.attempt - 1
    if not change_state(session, claim.run_id, ending.state, reason=ending.reason, fence=claim.fence, columns=columns):
        raise LeaseLost(f"Fence {claim.fence} does not hold run {claim.run_id} any more.")
    outcome = "requeued" if ending.state == "queued" else ending.state
    _close_attempt(session, claim.run_id, claim.fence, outcome, ending.exit_code)


def reap(session: Session, is_dead: Callable[[str], bool]) -> list[str]:
    """Take runs from holders whose lease is over, or of whom `is_dead(lease owner)` knows that they are gone.

    They return to the queue, are cancelled if a person wanted that, or fail after max_attempts without progress.
    Returns the ids of the runs that were taken.
    """
    now = now_of(session)
    # A lease without an end counts as over: NULL < now would never be true and the run would hang for ever.
    is_over = or_(Run.lease_until.is_(None), Run.lease_until < now - _TAKEOVER_DELAY)
    rows = session.execute(
        select(Run.id, Run.fence, Run.lease_owner, Run.attempt, Run.max_attempts, Run.desired_state, is_over)
        .where(Run.state.in_(HELD_STATES))
        .order_by(Run.id)
    ).all()
    return [
        run_id
        for run_id, fence, owner, attempt, max_attempts, wish, over in rows
        if (over or (owner is not None and is_dead(owner)))
        and _take(session, run_id, fence, owner, attempt, max_attempts, wish, now)
    ]


def _take(
    session: Session,
    run_id: str,
    fence: int,
    owner: str | None,
    attempt: int,
    max_attempts: int,
    wish: str,
    now: datetime,
) -> bool:
    columns: dict[str, Any] = {"fence": fence + 1}
    to: RunState = "queued"
    reason = f"Worker {owner or 'unknown'} was not heard of any more; the run goes on elsewhere."
    if wish != "run":
        to, reason = "cancelled", f"Worker {owner or 'unknown'} was not heard of any more; the run was to be cancelled."
    elif attempt >= max_attempts:
        to = "failed"
        reason = f"The worker was lost {attempt} times without a new checkpoint in between; see the worker's log."
        columns |= {"failure_kind": "worker_lost", "failure_message": reason}
    else:
        columns["not_before"] = _retry_time(now, attempt)
    if not change_state(session, run_id, to, reason=reason, fence=fence, columns=columns):
        return False
    _close_attempt(session, run_id, fence, "lost", None)
    return True


def extend_leases(session: Session) -> None:
    """Give every holder a full lease from now on: after a jump of the clock nobody has had the chance to renew."""
    now = now_of(session)
    session.execute(
        update(Run)
        .where(and_(Run.state.in_(HELD_STATES), Run.lease_owner.is_not(None)))
        .values(lease_until=now + timedelta(seconds=LEASE_SECONDS))
    )


def _close_attempt(session: Session, run_id: str, fence: int, outcome: str, exit_code: int | None) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.run_id == run_id, Attempt.fence == fence)
        .values(outcome=outcome, ended_at=now_of(session), exit_code=exit_code)
    )


def _retry_time(now: datetime, attempt: int) -> datetime | None:
    seconds = _RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS)) - 1]
    return now + timedelta(seconds=seconds) if seconds else None


def add_event(session: Session, run_id: str, kind: str, payload: dict[str, Any], *, fence: int, time: datetime) -> None:
    """Append to a run's history. The caller has written the run's row before: its lock keeps `seq` free of gaps."""
    last_seq = session.execute(select(func.max(Event.seq)).where(Event.run_id == run_id)).scalar_one()
    session.add(Event(run_id=run_id, seq=(last_seq or 0) + 1, time=time, kind=kind, fence=fence, payload=payload))
    session.flush()


def _add_state_event(session: Session, run_id: str, fence: int, state: RunState, reason: str) -> None:
    add_event(session, run_id, "state", {"state": state, "reason": reason}, fence=fence, time=now_of(session))


def _num_rows(result: Any) -> int:
    assert isinstance(result, CursorResult)
    return result.rowcount
