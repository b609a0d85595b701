"""What must hold of runs whatever happened to processes, broker, database and disk, checked on what was recorded."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import psutil
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.database import Database
from backend.queries.transitions import ALLOWED
from backend.records import Attempt, Checkpoint, Event, Metric
from backend.run_states import ENDED_STATES, HELD_STATES
from backend.tables import Run
from engine.events import StepDone, read_events
from engine.manifest import Expected, damage_of, spec_sha256


def broken_promises(database: Database, run_dir: Path, run_ids: Sequence[str]) -> list[str]:
    """A sentence for each promise that these runs, none of which is at work, do not keep."""
    found = []
    with database.read() as session:
        for run in session.scalars(select(Run).where(Run.id.in_(run_ids)).order_by(Run.id)):
            told = [*history_broken(session, run), *fences_broken(session, run), *steps_broken(session, run),
                    *checkpoints_broken(session, run, run_dir)]  # fmt: skip
            if run.state == "succeeded" and run.last_step != run.num_steps:
                told.append(f"it succeeded with {run.last_step} of {run.num_steps} steps.")
            found += [f"Run {run.id}: {sentence}" for sentence in told]
    return found + [f"Process {process.pid} is left over: {_command(process)}" for process in engines(run_dir)]


def history_broken(session: Session, run: Run) -> list[str]:
    """The history has no gap, each move in it is allowed, what has ended stays ended, and it ends in the run's state."""
    events = session.scalars(select(Event).where(Event.run_id == run.id).order_by(Event.seq)).all()
    broken = []
    if [event.seq for event in events] != list(range(1, len(events) + 1)):
        broken.append("its history has gaps.")
    state = None
    for event in (event for event in events if event.kind == "state"):
        to, actor = event.payload["state"], event.payload["actor"]
        if state is not None and state not in ALLOWED.get((actor, to), ()):
            broken.append(f"event {event.seq} moved it from {state} to {to} by {actor}, which is not allowed.")
        if state in ENDED_STATES and actor != "person":
            broken.append(f"event {event.seq} moved it although it was {state}.")
        state = to
    if state != run.state:
        broken.append(f"its history ends in {state}, its row says {run.state}.")
    if (run.state in HELD_STATES) != (run.lease_owner is not None):
        broken.append(f"it is {run.state} and its owner is {run.lease_owner}.")
    return broken


def fences_broken(session: Session, run: Run) -> list[str]:
    """Fences of claims rise, each attempt has one of its own, and only the newest may still be open."""
    claims = select(Event.fence, Event.payload).where(Event.run_id == run.id, Event.kind == "state").order_by(Event.seq)
    fences = [fence for fence, payload in session.execute(claims) if payload["state"] == "starting"]
    broken = []
    if any(later <= earlier for earlier, later in pairwise(fences)):
        broken.append(f"the fences of its claims do not rise: {fences}.")
    attempts = session.scalars(select(Attempt).where(Attempt.run_id == run.id).order_by(Attempt.fence)).all()
    if [attempt.fence for attempt in attempts] != fences:
        broken.append(f"its attempts {[attempt.fence for attempt in attempts]} are not its claims {fences}.")
    if run.state not in HELD_STATES and any(attempt.outcome is None for attempt in attempts):
        broken.append("an attempt of it is open although nobody holds it.")
    return broken


def steps_broken(session: Session, run: Run) -> list[str]:
    """Each step up to the last is recorded once, and by the last attempt that took it."""
    rows = session.execute(
        select(Metric.step, Metric.fence).where(Metric.run_id == run.id, Metric.key == "loss").order_by(Metric.step)
    ).all()
    broken = []
    if [step for step, _ in rows] != list(range(1, run.last_step + 1)):
        broken.append(f"its recorded steps are not 1 to {run.last_step}, each once.")
    if stale := stale_steps(session, run.id):
        broken.append(f"steps {stale} are those of an attempt whose work was done again.")
    return broken


def stale_steps(session: Session, run_id: str) -> list[int]:
    """Recorded steps that a later attempt has taken again, so that they must not be there any more."""
    begun = select(Event.fence).where(Event.run_id == run_id, Event.kind == "started")
    resumed = {
        attempt.fence: attempt.resumed_from_step
        for attempt in session.scalars(select(Attempt).where(Attempt.run_id == run_id, Attempt.fence.in_(begun)))
    }
    rows = session.execute(select(Metric.step, Metric.fence).where(Metric.run_id == run_id).distinct())
    return sorted(
        {step for step, fence in rows if any(later > fence and step > start for later, start in resumed.items())}
    )


def checkpoints_broken(session: Session, run: Run, run_dir: Path) -> list[str]:
    """Every checkpoint in the list is whole and of this run."""
    broken = []
    listed = select(Checkpoint).where(Checkpoint.run_id == run.id, Checkpoint.removed_at.is_(None))
    for row in session.scalars(listed):
        expected = Expected(
            step=row.step, attempt=row.fence, spec_sha256=spec_sha256(run.spec), manifest_sha256=row.manifest_sha256
        )
        damage = damage_of(run_dir / run.id / "attempts" / str(row.fence) / row.path, expected)
        if damage is not None:
            broken.append(f"its checkpoint of step {row.step} cannot be used: {damage}.")
    return broken


def repeated_steps(run_dir: Path, run_id: str) -> int:
    """Steps that were trained more than once, as the journals of all attempts tell: what faults have cost."""
    taken = [
        event.step
        for journal in (run_dir / run_id).glob("attempts/*/events.jsonl")
        for event, _ in read_events(journal)
        if isinstance(event, StepDone)
    ]
    return len(taken) - len(set(taken))


def engines(run_dir: Path) -> list[psutil.Process]:
    """The engines that work below a folder now."""
    found = []
    for process in psutil.process_iter():
        try:
            is_alive = process.status() != psutil.STATUS_ZOMBIE
            if is_alive and "train" in process.cmdline() and any(str(run_dir) in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:  # it has ended meanwhile
            continue
    return found


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return "it has ended meanwhile"
