"""Follows the events.jsonl of a run's attempts and has them recorded."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import func, or_, select

from backend.artifact_store import ArtifactStore
from backend.artifacts import Artifact
from backend.database import Database, now_of
from backend.folder_store import FolderStore
from backend.limits import Limits
from backend.queries.claims import Claim, hold
from backend.queries.recording import AttemptEvents, record
from backend.queries.transitions import add_event
from backend.records import Attempt, Event
from engine.events import CheckpointSaved, Failed, Finished, RunEvent, Stopped, TracesWritten, read_events
from engine.manifest import MANIFEST, ManifestFile
from worker.retention import drop_unkept
from worker.uploads import PATIENCE_SECONDS, Uploads, files_of

_DEFAULT_LIMITS = Limits()
_MAX_BATCH = 200  # events per transaction
_LAST_WORDS: dict[str, type[Finished | Failed | Stopped]] = {"finished": Finished, "failed": Failed, "stopped": Stopped}


class UnreadableEvents(Exception):
    """The engine wrote a line that is not an event."""


class Recorder:
    """Records the attempts of a claimed run, its own and those that died with unrecorded events.

    Files that an event speaks of are in the store before it is recorded; the events behind it wait.
    """

    def __init__(
        self,
        database: Database,
        claim: Claim,
        run_folder: Path,
        limits: Limits = _DEFAULT_LIMITS,
        store: ArtifactStore | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """`store` is where files are kept, None in the folder that they were written to; one that fails is asked again for so long."""
        self.database = database
        self.claim = claim
        self.run_folder = run_folder
        self.limits = limits
        self.store = store or FolderStore(run_folder.parent)
        self.is_storing = False
        """Whether an event waits for its files to be stored."""
        self._uploads = Uploads(self.store, patience_seconds)
        self._offset = 0
        self._metric_keys: set[str] = set()

    def attempt_folder(self, fence: int) -> Path:
        return self.run_folder / "attempts" / str(fence)

    def catch_up(self, while_storing: Callable[[], None] = lambda: None) -> Finished | Failed | None:
        """Record what lost attempts emitted without anyone to record it; how the attempt before this one said that it ended.

        `while_storing` is called again and again while their files are stored. Raises StoreUnavailable.
        """
        with self.database.read() as session:
            # What a lost engine emits after another attempt has begun would go over that one's steps.
            begun = select(func.max(Attempt.fence)).where(
                Attempt.run_id == self.claim.run_id, Attempt.fence < self.claim.fence, Attempt.event_offset > 0
            )
            lost = session.execute(
                select(Attempt.fence, Attempt.event_offset)
                .where(
                    Attempt.run_id == self.claim.run_id,
                    Attempt.fence >= (session.scalar(begun) or 0),
                    Attempt.fence < self.claim.fence,
                    or_(Attempt.outcome == "lost", Attempt.outcome.is_(None)),
                )
                .order_by(Attempt.fence)
            ).all()
            before = session.scalar(
                select(func.max(Attempt.fence)).where(
                    Attempt.run_id == self.claim.run_id, Attempt.fence < self.claim.fence
                )
            )
        for fence, offset in lost:
            while (end := self._record_batch(fence, offset)) > offset or self.is_storing:
                offset = end
                if self.is_storing:
                    while_storing()
                    self._uploads.wait()
        # Behind another attempt, or from the first step, the run was begun again in the knowledge of what an older one said.
        is_news = bool(lost) and lost[-1].fence == before and lost[-1].fence >= self.claim.first_fence
        last_word = self._last_word(lost[-1].fence) if is_news else None
        return None if isinstance(last_word, Stopped) else last_word  # it stopped to go on

    def last_word(self) -> Finished | Failed | Stopped | None:
        """How this attempt's engine said that it ended, as far as that is recorded."""
        return self._last_word(self.claim.fence)

    def advance(self) -> bool:
        """Record a batch of this attempt's new events; False when there was none, or when the next one's files are not stored yet.

        Raises LeaseLost when the run is in other hands, UnreadableEvents when a line is not an event, StoreUnavailable when the store has
        failed for too long.
        """
        end = self._record_batch(self.claim.fence, self._offset)
        moved = end > self._offset
        self._offset = end
        return moved

    def _record_batch(self, fence: int, offset: int) -> int:
        folder = self.attempt_folder(fence)
        read = _read_batch(folder / "events.jsonl", offset)
        events, end = self._stored(fence, read, offset)
        if not events:
            return offset
        batch = AttemptEvents(
            run_id=self.claim.run_id,
            fence=fence,
            holder=self.claim.fence,
            events=events,
            start_offset=offset,
            end_offset=end,
            manifests=self._manifests(events, fence),
            known_keys=self._metric_keys,
        )
        with self.database.write() as session:
            record(session, batch, self.limits)
        if batch.manifests:
            drop_unkept(self.database, self.claim, self.store)
        return end

    def close(self) -> None:
        """Let go of what is being stored; another call of `advance` or `catch_up` would begin it again."""
        self._uploads.close()

    def _stored(self, fence: int, read: list[tuple[RunEvent, int]], offset: int) -> tuple[list[RunEvent], int]:
        """The first of these events, as far as all their files are in the store, and the offset behind them."""
        events, end = [], offset
        self.is_storing = False
        for event, behind in read:
            artifact = self._artifact_of(event, fence)
            if artifact is not None and not self._uploads.is_done(artifact):
                self.is_storing = True
                self._tell_of_trouble(fence)
                break
            events.append(event)
            end = behind
        return events, end

    def _artifact_of(self, event: RunEvent, fence: int) -> Artifact | None:
        if not self.store.is_remote or not isinstance(event, CheckpointSaved | TracesWritten):
            return None
        if isinstance(event, TracesWritten):
            return Artifact(self.claim.run_id, fence, event.path)
        return Artifact(self.claim.run_id, fence, event.path, event.manifest_sha256)

    def _tell_of_trouble(self, fence: int) -> None:
        """Write into the history, once, that files wait for the store."""
        message = self._uploads.untold_trouble()
        if message is None:
            return
        with self.database.write() as session:
            hold(session, self.claim.run_id, self.claim.fence)
            payload = {"code": "store_unavailable", "message": message}
            add_event(session, self.claim.run_id, "warning", payload, fence=fence, time=now_of(session))

    def _manifests(self, events: list[RunEvent], fence: int) -> dict[str, list[ManifestFile]]:
        found: dict[str, list[ManifestFile]] = {}
        for event in events:
            if isinstance(event, CheckpointSaved):
                artifact = self._artifact_of(event, fence)
                listed = files_of(self.attempt_folder(fence) / event.path / MANIFEST, event.manifest_sha256)
                if listed is not None and (artifact is None or self._uploads.is_whole(artifact)):
                    found[event.path] = listed
        return found

    def _last_word(self, fence: int) -> Finished | Failed | Stopped | None:
        with self.database.read() as session:
            row = session.execute(
                select(Event)
                .where(Event.run_id == self.claim.run_id, Event.fence == fence, Event.kind.in_(_LAST_WORDS))
                .order_by(Event.seq.desc())
                .limit(1)
            ).scalar_one_or_none()
        if row is None:
            return None
        return _LAST_WORDS[row.kind].model_validate({"time": row.time.timestamp(), **row.payload})


def _read_batch(path: Path, offset: int) -> list[tuple[RunEvent, int]]:
    """Events behind an offset, each with the offset behind itself."""
    if not path.exists():
        return []
    try:
        return list(islice(read_events(path, offset), _MAX_BATCH))
    except ValidationError as error:
        raise UnreadableEvents(f"A line behind byte {offset} of {path.name} is not an event: {error}") from error
