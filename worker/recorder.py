"""Follows the events.jsonl of a run's attempts and has them recorded."""

import hashlib
from itertools import islice
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import func, or_, select

from backend.database import Database
from backend.limits import Limits
from backend.queries.claims import Claim
from backend.queries.recording import AttemptEvents, record
from backend.records import Attempt, Event
from engine.events import CheckpointSaved, Failed, Finished, RunEvent, read_events
from engine.manifest import MANIFEST, Manifest, ManifestFile
from worker.retention import drop_unkept

_DEFAULT_LIMITS = Limits()
_MAX_BATCH = 200  # events per transaction


class UnreadableEvents(Exception):
    """The engine wrote a line that is not an event."""


class Recorder:
    """Records the attempts of a claimed run, its own and those that died with unrecorded events."""

    def __init__(self, database: Database, claim: Claim, run_folder: Path, limits: Limits = _DEFAULT_LIMITS) -> None:
        self.database = database
        self.claim = claim
        self.run_folder = run_folder
        self.limits = limits
        self._offset = 0
        self._metric_keys: set[str] = set()

    def attempt_folder(self, fence: int) -> Path:
        return self.run_folder / "attempts" / str(fence)

    def catch_up(self) -> Finished | Failed | None:
        """Record what lost attempts emitted without anyone to record it; how the last of them said that it ended."""
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
        for fence, offset in lost:
            while (end := self._record_batch(fence, offset)) > offset:
                offset = end
        return self._last_word(lost[-1].fence) if lost else None

    def last_word(self) -> Finished | Failed | None:
        """How this attempt's engine said that it ended, as far as that is recorded."""
        return self._last_word(self.claim.fence)

    def advance(self) -> bool:
        """Record a batch of this attempt's new events; False when there was none.

        Raises LeaseLost when the run is in other hands, UnreadableEvents when a line is not an event.
        """
        end = self._record_batch(self.claim.fence, self._offset)
        moved = end > self._offset
        self._offset = end
        return moved

    def _record_batch(self, fence: int, offset: int) -> int:
        folder = self.attempt_folder(fence)
        events, end = _read_batch(folder / "events.jsonl", offset)
        if not events:
            return offset
        batch = AttemptEvents(
            run_id=self.claim.run_id,
            fence=fence,
            holder=self.claim.fence,
            events=events,
            start_offset=offset,
            end_offset=end,
            manifests=_manifests(events, folder),
            known_keys=self._metric_keys,
        )
        with self.database.write() as session:
            record(session, batch, self.limits)
        if batch.manifests:
            drop_unkept(self.database, self.claim, self.run_folder)
        return end

    def _last_word(self, fence: int) -> Finished | Failed | None:
        with self.database.read() as session:
            row = session.execute(
                select(Event)
                .where(Event.run_id == self.claim.run_id, Event.fence == fence, Event.kind.in_(("finished", "failed")))
                .order_by(Event.seq.desc())
                .limit(1)
            ).scalar_one_or_none()
        if row is None:
            return None
        kind = Finished if row.kind == "finished" else Failed
        return kind.model_validate({"time": row.time.timestamp(), **row.payload})


def _read_batch(path: Path, offset: int) -> tuple[list[RunEvent], int]:
    if not path.exists():
        return [], offset
    try:
        read = list(islice(read_events(path, offset), _MAX_BATCH))
    except ValidationError as error:
        raise UnreadableEvents(f"A line behind byte {offset} of {path.name} is not an event: {error}") from error
    return [event for event, _ in read], read[-1][1] if read else offset


def _manifests(events: list[RunEvent], folder: Path) -> dict[str, list[ManifestFile]]:
    saved = (event for event in events if isinstance(event, CheckpointSaved))
    files = {event.path: _files_of(folder / event.path / MANIFEST, event.manifest_sha256) for event in saved}
    return {path: listed for path, listed in files.items() if listed is not None}


def _files_of(path: Path, sha256: str) -> list[ManifestFile] | None:
    """The files that a manifest lists; None when the folder is gone or holds another checkpoint by now."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if hashlib.sha256(content).hexdigest() != sha256:
        return None
    return Manifest.model_validate_json(content).files
