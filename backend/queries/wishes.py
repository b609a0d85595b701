"""What people want of runs: `desired_state` and priority. The holder of a run's lease does it; nobody holds a queued run.

The caller commits. WishRefused has the sentence for a person.
"""

from typing import Any, Literal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from backend.database import now_of
from backend.queries.resumable import may_be_whole
from backend.queries.transitions import transition
from backend.records import Checkpoint
from backend.run_states import ENDED_STATES, RunState
from backend.tables import Run

Wish = Literal["run", "pause", "cancel", "cancel_with_checkpoint"]

_ENDED = {"succeeded": "succeeded", "failed": "failed", "cancelled": "been cancelled"}


class WishRefused(Exception):
    """The run is in a state in which this cannot be asked of it."""


class NoSuchRun(Exception):
    """There is no run with this id."""


def wish_of(session: Session, run_id: str) -> Wish:
    """What people want of the run."""
    query = select(Run.desired_state, Run.checkpoint_on_cancel).where(Run.id == run_id)
    desired, with_checkpoint = session.execute(query).one()
    if desired == "cancel":
        return "cancel_with_checkpoint" if with_checkpoint else "cancel"
    return "pause" if desired == "pause" else "run"


def ask_to_cancel(session: Session, run_id: str, *, checkpoint: bool) -> None:
    """End the run: at once while nobody holds it, else after the present step, with a checkpoint of it or without."""
    state = _locked_state(session, run_id)
    if state in ENDED_STATES:
        raise WishRefused(f"The run has already {_ENDED[state]}; only queued, paused and active runs can be cancelled.")
    _write(session, run_id, desired_state="cancel", checkpoint_on_cancel=checkpoint)
    if state in ("queued", "paused"):
        transition(session, run_id, "cancelled", actor="person", reason="Cancelled while no worker held it.")


def ask_to_pause(session: Session, run_id: str) -> None:
    """Let the run write a checkpoint and leave its worker free; a queued one waits where it is."""
    state = _locked_state(session, run_id)
    if state in ENDED_STATES:
        raise WishRefused(f"The run has already {_ENDED[state]}; only queued and active runs can be paused.")
    if _desired_state(session, run_id) == "cancel":
        raise WishRefused("The run is being cancelled; it can be retried once it has ended.")
    if state == "paused":
        return
    _write(session, run_id, desired_state="pause")
    if state == "queued":
        transition(session, run_id, "paused", actor="person", reason="Paused before a worker took it.")


def ask_to_resume(session: Session, run_id: str) -> None:
    """Let a paused run go on from its last checkpoint."""
    state = _locked_state(session, run_id)
    if state in ENDED_STATES:
        remedy = "clone it to train again" if state == "succeeded" else "retry it"
        raise WishRefused(f"The run has already {_ENDED[state]}; only paused runs can be resumed: {remedy}.")
    if _desired_state(session, run_id) == "cancel":
        raise WishRefused("The run is being cancelled; it can be retried once it has ended.")
    _write(session, run_id, desired_state="run")
    if state == "paused":
        columns = {"not_before": None, "attempt": 0}
        transition(session, run_id, "queued", actor="person", reason="Resumed.", columns=columns)


def ask_to_retry(session: Session, run_id: str, *, from_scratch: bool) -> None:
    """Queue a failed or cancelled run again, from its last checkpoint or, if wanted, from its first step."""
    state = _locked_state(session, run_id)
    if state == "succeeded":
        raise WishRefused(
            "The run has succeeded; only failed and cancelled runs can be retried: clone it to train again."
        )
    if state not in ENDED_STATES:
        raise WishRefused(f"The run is {state}; only failed and cancelled runs can be retried.")
    columns: dict[str, Any] = {"not_before": None, "attempt": 0, "failure_kind": None, "failure_message": None}
    reason = "Retried from its last checkpoint."
    if from_scratch:
        columns["first_fence"] = Run.fence + 1
        reason = "Retried from its first step."
    elif not _has_checkpoint(session, run_id):
        raise WishRefused("The run has no checkpoint that it could go on from; retry it with from_scratch set to true.")
    _write(session, run_id, desired_state="run")
    transition(session, run_id, "queued", actor="person", reason=reason, columns=columns)


def set_priority(session: Session, run_id: str, priority: int) -> None:
    """Say how urgent a run is among the queued ones; higher runs first."""
    _locked_state(session, run_id)
    _write(session, run_id, priority=priority)


def settle_queued(session: Session) -> None:
    """Cancel or pause queued runs that people do not want to run: a wish can meet a run on its way back to the queue."""
    unwanted = select(Run.id, Run.desired_state).where(Run.state == "queued", Run.desired_state != "run")
    for run_id, desired in session.execute(unwanted.with_for_update(skip_locked=True)).all():
        to: RunState = "paused" if desired == "pause" else "cancelled"
        transition(session, run_id, to, actor="control", reason=f"{to.capitalize()} as asked, before a worker took it.")


def _locked_state(session: Session, run_id: str) -> RunState:
    state: RunState | None = session.scalar(select(Run.state).where(Run.id == run_id).with_for_update())
    if state is None:
        raise NoSuchRun(run_id)
    return state


def _desired_state(session: Session, run_id: str) -> str:
    return session.execute(select(Run.desired_state).where(Run.id == run_id)).scalar_one()


def _write(session: Session, run_id: str, **columns: Any) -> None:
    if "desired_state" in columns:
        columns["desired_at"] = now_of(session)
    session.execute(
        update(Run)
        .where(Run.id == run_id)
        .values(row_version=Run.row_version + 1, **columns)
        .execution_options(synchronize_session=False)
    )


def _has_checkpoint(session: Session, run_id: str) -> bool:
    committed = (
        select(Checkpoint.id)
        .join(Run, Run.id == Checkpoint.run_id)
        .where(Run.id == run_id, may_be_whole(), Checkpoint.fence >= Run.first_fence)
    )
    return session.execute(committed.limit(1)).first() is not None
