"""Who may work on a run: claims, leases, endings and what becomes of runs whose holder is gone.

A claim raises the run's fence; every later write of that attempt carries it, so a worker that was declared dead changes
nothing when it wakes up. Times are the database's. The caller commits.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import CursorResult, and_, func, or_, select, update
from sqlalchemy.orm import Session, defer

from backend.database import now_of
from backend.queries.queue import next_run
from backend.queries.retries import RETRY_SECONDS, next_try
from backend.queries.transitions import TransitionRejected, transition
from backend.queries.wishes import wish_of
from backend.records import Attempt
from backend.resources import WorkerCapabilities
from backend.run_states import HELD_STATES, RunState
from backend.tables import Run
from engine.events import EVENT_VERSION
from engine.spec import RunSpec

LEASE_SECONDS = 60.0
START_SECONDS = 1800.0
"""After so long an attempt whose engine is not ready is given up, though its worker lives."""
CANCEL_SECONDS = 180.0
"""After so long a run that was to be cancelled without a checkpoint is taken from a worker that does not end it."""
# The old holder has killed its engine by then, whatever the rounding of the two clocks.
_TAKEOVER_DELAY = timedelta(seconds=5)
_UNKNOWN = WorkerCapabilities()


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
    first_fence: int
    """The first attempt whose checkpoints count: a person may have asked to begin again."""


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
    """Whether an attempt that returns to the queue counts against max_attempts, waits before the next one and fails the run
    when it was the last; a planned shutdown does not."""
    has_unrecorded: bool = False
    """Whether its record is not complete: what its disk has of it is recorded before the next attempt begins."""


def claim_run(
    session: Session,
    *,
    owner: str,
    host: str,
    boot_id: str,
    lease_seconds: float = LEASE_SECONDS,
    worker: WorkerCapabilities = _UNKNOWN,
    unreadable: set[str] | None = None,
) -> Claim | None:
    """The run of the queue that a worker is to take next, now held by `owner`; None when there is none. See next_run."""
    found = next_run(session, worker, host=host, unreadable=set() if unreadable is None else unreadable)
    if found is None:
        return None
    run_id = found.id
    now = now_of(session)
    columns = {
        "fence": Run.fence + 1,
        "attempt": Run.attempt + 1,
        "lease_owner": owner,
        "lease_until": now + timedelta(seconds=lease_seconds),
        "heartbeat_at": now,
        "claimed_at": now,
        "started_at": func.coalesce(Run.started_at, now),
        "ready_at": None,
        "event_version": EVENT_VERSION,
        "refusal": None,
        "failure_kind": None,
        "failure_message": None,
    }
    reason = f"Claimed by {owner}."
    fence = transition(session, run_id, "starting", actor="holder", reason=reason, columns=columns)
    session.add(Attempt(run_id=run_id, fence=fence, worker_id=owner, host=host, boot_id=boot_id, started_at=now))
    session.flush()
    return Claim(run_id, fence, found.spec, found.attempt + 1, found.max_attempts, found.first_fence)


def renew_lease(session: Session, run_id: str, fence: int, *, lease_seconds: float = LEASE_SECONDS) -> None:
    """Keep the run for another `lease_seconds`. Raises LeaseLost."""
    now = now_of(session)
    hold(session, run_id, fence, lease_until=now + timedelta(seconds=lease_seconds), heartbeat_at=now)


def hold(session: Session, run_id: str, fence: int, **columns: Any) -> None:
    """Write columns of a run that this fence holds, and lock its row until the commit. Raises LeaseLost.

    Its state is no such column: see transition().
    """
    assert "state" not in columns
    result = session.execute(
        update(Run)
        .where(Run.id == run_id, Run.fence == fence, Run.state.in_(HELD_STATES))
        .values(columns or {"fence": fence})
        .execution_options(synchronize_session=False)
    )
    if _num_rows(result) == 0:
        raise LeaseLost(f"Fence {fence} does not hold run {run_id} any more.")


def set_engine_process(session: Session, claim: Claim, *, pid: int, pid_started: float | None) -> None:
    """Note the engine process of an attempt."""
    session.execute(
        update(Attempt)
        .where(Attempt.run_id == claim.run_id, Attempt.fence == claim.fence)
        .values(pid=pid, pid_started=pid_started)
    )


def end_attempt(session: Session, claim: Claim, ending: Ending, *, retry_seconds: float = RETRY_SECONDS) -> None:
    """Close an attempt and leave its run as `ending` says; `retry_seconds` is the base of the back-off. Raises LeaseLost."""
    hold(session, claim.run_id, claim.fence)
    ending = _as_wished(session, claim.run_id, ending)
    columns: dict[str, Any] = {}
    if ending.state == "queued":
        ending, columns["not_before"] = _tried_again(session, claim.run_id, ending, retry_seconds)
    has_failed = ending.state in ("queued", "failed")
    columns["failure_kind"] = ending.failure_kind if has_failed else None
    columns["failure_message"] = ending.failure_message if has_failed else None
    if ending.state in ("queued", "paused") and not ending.counts:
        columns["attempt"] = Run.attempt - 1
    try:
        transition(
            session,
            claim.run_id,
            ending.state,
            actor="holder",
            reason=ending.reason,
            fence=claim.fence,
            columns=columns,
        )
    except TransitionRejected as rejected:
        raise LeaseLost(str(rejected)) from None
    outcome = "lost" if ending.has_unrecorded else "requeued" if ending.state == "queued" else ending.state
    _close_attempt(session, claim.run_id, claim.fence, outcome, ending.exit_code)


def _tried_again(session: Session, run_id: str, ending: Ending, retry_seconds: float) -> tuple[Ending, datetime | None]:
    """The ending with the words that say when the run goes on, and that time; or its failure, after the last attempt."""
    if not ending.counts:
        return ending, None
    # From the row and not from the claim: a checkpoint that the attempt committed has set the count back.
    attempt, most = session.execute(select(Run.attempt, Run.max_attempts).where(Run.id == run_id)).one()
    retry = next_try(now_of(session), attempt=attempt, max_attempts=most, base_seconds=retry_seconds, is_innocent=False)
    words = retry.words if retry else f"No new checkpoint came in {most} attempts in a row."
    reason = f"{ending.reason} {words}"
    message = ending.failure_message and ending.failure_message.replace(ending.reason, reason, 1)
    told = replace(ending, reason=reason, failure_message=message)
    return (told, retry.not_before) if retry else (replace(told, state="failed"), None)


def _as_wished(session: Session, run_id: str, ending: Ending) -> Ending:
    """An attempt that leaves its run unfinished leaves it as people want it now; they may have changed their mind."""
    if ending.state not in ("queued", "paused"):
        return ending
    wish = wish_of(session, run_id)
    if wish == "run":
        return replace(ending, state="queued") if ending.state == "paused" else ending
    if wish == "pause":
        reason = ending.reason if ending.state == "paused" else f"{ending.reason} It is paused, as asked."
        return replace(ending, state="paused", reason=reason)
    return replace(ending, state="cancelled", reason="Cancelled as asked.")


def reap(
    session: Session,
    is_dead: Callable[[str], bool],
    *,
    start_seconds: float = START_SECONDS,
    retry_seconds: float = RETRY_SECONDS,
) -> list[str]:
    """Take runs from holders that are gone, never got ready or do not let go; the ids of the runs that were taken.

    Gone is a holder whose lease is over, or of whom `is_dead(lease owner)` knows it. Its run returns to the queue, is paused
    or cancelled if a person wanted that, or fails after max_attempts without progress.
    """
    now = now_of(session)
    # A lease without an end counts as over: NULL < now would never be true and the run would hang for ever.
    is_over = or_(Run.lease_until.is_(None), Run.lease_until < now - _TAKEOVER_DELAY)
    is_late = and_(Run.state == "starting", Attempt.started_at < now - timedelta(seconds=start_seconds))
    # Whoever waits for a last checkpoint gets it, as long as it may take to save and store it; a cancellation without one may follow.
    is_urgent = and_(Run.desired_state == "cancel", Run.checkpoint_on_cancel.is_(False))
    is_deaf = and_(is_urgent, Run.desired_at < now - timedelta(seconds=CANCEL_SECONDS))
    query = (
        select(Run, is_over, func.coalesce(is_late, False), func.coalesce(is_deaf, False))
        .join(Attempt, and_(Attempt.run_id == Run.id, Attempt.fence == Run.fence), isouter=True)
        .where(Run.state.in_(HELD_STATES))
        .order_by(Run.id)
        .options(defer(Run.spec), defer(Run.flops))  # large, and not asked for here
    )
    taken = []
    for run, over, late, deaf in session.execute(query).all():
        owner = run.lease_owner
        if over or (owner is not None and is_dead(owner)):
            lost = _Loss("worker_lost", f"Worker {owner or 'unknown'} was not heard of any more")
        elif late:
            lost = _Loss("start_timeout", f"The engine was not ready within {start_seconds:.0f} s")
        elif deaf:
            lost = _Loss("worker_lost", f"Worker {owner} did not let go within {CANCEL_SECONDS:.0f} s")
        else:
            continue
        if _take(session, run, lost, now, retry_seconds):
            taken.append(run.id)
    return taken


@dataclass(frozen=True)
class _Loss:
    """Why a run is taken from its holder."""

    kind: str
    cause: str


_ADVICE = {
    "worker_lost": "see the worker's log",
    "start_timeout": "see the engine's log, or allow more with INCIPIT_START_SECONDS",
}


def _take(session: Session, run: Run, loss: _Loss, now: datetime, retry_seconds: float) -> bool:
    columns: dict[str, Any] = {"fence": run.fence + 1}
    retry = next_try(
        now, attempt=run.attempt, max_attempts=run.max_attempts, base_seconds=retry_seconds, is_innocent=True
    )
    to: RunState = "queued"
    reason = f"{loss.cause}."
    if run.desired_state == "cancel":
        to, reason = "cancelled", f"{loss.cause}; the run was to be cancelled."
    elif run.desired_state == "pause":
        to, reason = "paused", f"{loss.cause}; the run is paused, as asked."
    elif retry is None:
        to = "failed"
        reason = f"{loss.cause}, {run.attempt} times without a new checkpoint in between; {_ADVICE[loss.kind]}."
        columns |= {"failure_kind": loss.kind, "failure_message": reason}
    else:
        columns["not_before"] = retry.not_before
        reason = f"{loss.cause}. {retry.words}"
    try:
        transition(session, run.id, to, actor="control", reason=reason, fence=run.fence, columns=columns)
    except TransitionRejected:
        return False  # its holder was faster
    _close_attempt(session, run.id, run.fence, "lost", None)
    return True


def extend_leases(session: Session, *, lease_seconds: float = LEASE_SECONDS) -> None:
    """Give every holder a full lease from now on: after a jump of the clock nobody has had the chance to renew."""
    now = now_of(session)
    session.execute(
        update(Run)
        .where(and_(Run.state.in_(HELD_STATES), Run.lease_owner.is_not(None)))
        .values(lease_until=now + timedelta(seconds=lease_seconds))
    )


def _close_attempt(session: Session, run_id: str, fence: int, outcome: str, exit_code: int | None) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.run_id == run_id, Attempt.fence == fence)
        .values(outcome=outcome, ended_at=now_of(session), exit_code=exit_code)
    )


def _num_rows(result: Any) -> int:
    assert isinstance(result, CursorResult)
    return result.rowcount
