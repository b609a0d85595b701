"""What the database says about the folders of a run: which are of dead attempts, and which must stay. The caller commits."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from backend.database import now_of
from backend.queries.resumable import may_be_whole
from backend.queries.transitions import add_event
from backend.records import Attempt, Checkpoint, Rollout
from backend.run_states import HELD_STATES
from backend.tables import Run


@dataclass(frozen=True)
class RunFolders:
    """What may not be removed from a run's folder. Attempts go by their fence."""

    fence: int
    is_held: bool
    """Whether somebody works on it: then the attempt with its fence is alive."""
    settled: frozenset[int]
    """Attempts of which everything is recorded that ever will be; a lost one is recorded when the next begins."""
    checkpoints: frozenset[tuple[int, str]]
    """Attempt and path of the checkpoints that are kept, see _is_kept."""
    traced: frozenset[int]
    """Attempts whose token traces are shown."""

    def is_dead(self, attempt: int) -> bool:
        """Whether no process may write for this attempt any more."""
        return attempt < self.fence or (attempt == self.fence and not self.is_held)


def run_folders(session: Session, run_id: str, *, min_age_seconds: float) -> RunFolders | None:
    """The facts of one run; None when there is no such run."""
    run = session.execute(select(Run.fence, Run.state).where(Run.id == run_id)).one_or_none()
    if run is None:
        return None
    of_run = select(Attempt.fence, Attempt.outcome, Attempt.event_offset).where(Attempt.run_id == run_id)
    attempts = session.execute(of_run).all()
    newest_recorded = max((fence for fence, _, offset in attempts if offset), default=0)
    kept = select(Checkpoint.fence, Checkpoint.path).where(*_is_kept(session, run_id, min_age_seconds))
    traced = select(Rollout.fence).where(Rollout.run_id == run_id).distinct()
    return RunFolders(
        fence=run.fence,
        is_held=run.state in HELD_STATES,
        settled=frozenset(
            fence for fence, outcome, _ in attempts if fence < newest_recorded or outcome not in (None, "lost")
        ),
        checkpoints=frozenset((fence, path) for fence, path in session.execute(kept)),
        traced=frozenset(session.scalars(traced)),
    )


def stored_names(session: Session, run_id: str, *, min_age_seconds: float) -> frozenset[str]:
    """The names in a bucket that records of one run speak of: the folders of its checkpoints, each with the beginning of its manifest's
    sha256, and its files of traces; see S3Store.key."""
    columns = (Checkpoint.fence, Checkpoint.path, Checkpoint.manifest_sha256)
    kept = session.execute(select(*columns).where(*_is_kept(session, run_id, min_age_seconds)))
    traces = session.execute(select(Rollout.fence, Rollout.path).where(Rollout.run_id == run_id).distinct())
    return frozenset(f"{run_id}/attempts/{fence}/{path}/{sha256[:16]}" for fence, path, sha256 in kept) | frozenset(
        f"{run_id}/attempts/{fence}/{path}" for fence, path in traces
    )


def _is_kept(session: Session, run_id: str, min_age_seconds: float) -> tuple[ColumnElement[bool], ...]:
    """Checkpoints that are in the list, pinned, or were taken out of it only lately; and while the run could still need them, those
    that were found damaged: people are told to repair them."""
    is_needed = select(Run.id).where(Run.id == run_id, Run.state != "succeeded").exists()
    lately = now_of(session) - timedelta(seconds=min_age_seconds)
    return Checkpoint.run_id == run_id, or_(
        Checkpoint.removed_at.is_(None),
        Checkpoint.pinned,
        Checkpoint.removed_at > lately,
        and_(may_be_whole(), is_needed),
    )


def note_garbage(session: Session, run_id: str, *, num_folders: int, num_bytes: int) -> None:
    """Write into a run's history what was removed from its folder."""
    locked = update(Run).where(Run.id == run_id).values(fence=Run.fence).returning(Run.fence)
    fence = session.execute(locked.execution_options(synchronize_session=False)).scalar_one_or_none()
    if fence is None:
        return
    message = f"{num_folders} folders of attempts that are over were removed: {num_bytes} bytes."
    payload = {"num_folders": num_folders, "num_bytes": num_bytes, "message": message}
    add_event(session, run_id, "garbage_removed", payload, fence=fence, time=now_of(session))
