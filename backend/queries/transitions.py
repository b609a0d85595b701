"""The states of a run: who may move it from which to which. Nothing else in the project sets a state.

    queued → starting → running → succeeded
    side states: pausing → paused, cancelling; ended: succeeded, failed, cancelled

People write wishes (backend/queries/wishes.py). A state is moved by the holder of the lease, by the control process when the
holder is gone, and by a person only while nobody holds the run. Every move is one conditional UPDATE and one event in the same
transaction, so the history tells the state. The caller commits.
"""

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from backend.database import now_of
from backend.queries.raising import raise_ending
from backend.records import Event
from backend.run_states import ACTIVE_STATES, ENDED_STATES, HELD_STATES, RunState
from backend.tables import Run

Actor = Literal["person", "holder", "control"]
"""`holder` is the worker whose fence the run carries, or takes by claiming it."""

_AT_WORK: frozenset[RunState] = frozenset({"starting", "running"})

ALLOWED: Mapping[tuple[Actor, RunState], frozenset[RunState]] = MappingProxyType(
    {
        ("person", "queued"): frozenset({"paused", "failed", "cancelled"}),
        ("person", "paused"): frozenset({"queued"}),
        ("person", "cancelled"): frozenset({"queued", "paused"}),
        ("holder", "starting"): frozenset({"queued"}),
        ("holder", "running"): frozenset({"starting"}),
        ("holder", "pausing"): _AT_WORK,
        ("holder", "cancelling"): _AT_WORK | {"pausing"},
        ("holder", "queued"): HELD_STATES - {"cancelling"},
        ("holder", "paused"): HELD_STATES - {"cancelling"},
        ("holder", "succeeded"): HELD_STATES,
        ("holder", "failed"): HELD_STATES,
        ("holder", "cancelled"): HELD_STATES,
        ("control", "queued"): HELD_STATES - {"cancelling"},
        ("control", "paused"): (HELD_STATES - {"cancelling"}) | {"queued"},
        ("control", "failed"): HELD_STATES,
        ("control", "cancelled"): ACTIVE_STATES,
    }
)
"""Who may bring a run to a state, and from which states. What is not here is not allowed."""


class TransitionRejected(Exception):
    """The run is not in a state, or not in the hands, that this move starts from; nothing was changed."""


def transition(
    session: Session,
    run_id: str,
    to: RunState,
    *,
    actor: Actor,
    reason: str,
    fence: int | None = None,
    columns: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    """Move a run to another state and write that into its history; the fence that it has now.

    `fence` restricts the move to the attempt that holds the run. `columns` are written with the state, `reason` is one
    sentence for people. Raises TransitionRejected.
    """
    now = now_of(session)
    statement = update(Run).where(Run.id == run_id, Run.state.in_(ALLOWED.get((actor, to), frozenset())))
    if fence is not None:
        statement = statement.where(Run.fence == fence)
    values: dict[str, Any] = {"state": to, "row_version": Run.row_version + 1, **_columns_of(to, now), **columns}
    moved = session.execute(
        statement.values(values).returning(Run.fence, Run.row_version).execution_options(synchronize_session=False)
    ).one_or_none()
    if moved is None:
        holder = "" if fence is None else f" with fence {fence}"
        raise TransitionRejected(f"Run {run_id} cannot become {to} by {actor}{holder}.")
    payload = {"state": to, "reason": reason, "actor": actor}
    fence_now, version = moved
    add_event(session, run_id, "state", payload, fence=fence_now, time=now)
    if to in ("succeeded", "failed"):
        raise_ending(session, run_id, "finished" if to == "succeeded" else "failed", str(version), reason)
    return int(fence_now)


def _columns_of(to: RunState, now: datetime) -> dict[str, Any]:
    values: dict[str, Any] = {"finished_at": now if to in ENDED_STATES else None}
    if to not in HELD_STATES:
        values |= {"lease_owner": None, "lease_until": None, "phase": ""}
    if to == "queued":
        values["last_rung_at"] = None  # so that the control process rings at its next turn
    return values


def add_event(session: Session, run_id: str, kind: str, payload: dict[str, Any], *, fence: int, time: datetime) -> None:
    """Append to a run's history. The caller has written the run's row before: its lock keeps `seq` free of gaps."""
    last_seq = session.execute(select(func.max(Event.seq)).where(Event.run_id == run_id)).scalar_one()
    session.add(Event(run_id=run_id, seq=(last_seq or 0) + 1, time=time, kind=kind, fence=fence, payload=payload))
    session.flush()
