"""A run's history as it grows, for server-sent events: read from the database once a second, resumable by sequence number."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from fastapi.sse import ServerSentEvent
from sqlalchemy import func, select
from starlette.concurrency import run_in_threadpool

from backend.access import LOCAL, Principal
from backend.project_database import ProjectDatabase
from backend.queries.history import events
from backend.records import Event
from backend.run_states import ENDED_STATES, RunState
from backend.schemas import StoredEvent
from backend.tables import Run
from engine.frozen import Frozen

POLL_SECONDS = 1.0
_BATCH = 200


class RunProgress(Frozen):
    """Where a run is, sent whenever it changes; it has no id, since the history does not hold it."""

    state: RunState
    desired_state: str
    phase: str
    step: int
    row_version: int


class NoPlace(Exception):
    """As many streams are open as may be; the message says whose."""


class StreamPlaces:
    """Which streams are open. One per API process, used from its event loop alone.

    Each costs a short query a second. The token of a local stack may have all.
    """

    def __init__(self, limit: int, limit_each: int) -> None:
        self.limit = limit
        self.limit_each = limit_each
        self._open: Counter[str] = Counter()

    @property
    def num_open(self) -> int:
        """Streams of everybody."""
        return self._open.total()

    def require(self, reader: Principal) -> None:
        """Raises NoPlace when a reader may not open one more."""
        if self.num_open >= self.limit:
            raise NoPlace(
                f"{self.limit} streams are open, as many as one API process holds; close some or poll the run's events."
            )
        if reader.id != LOCAL.id and self._open[reader.id] >= self.limit_each:
            raise NoPlace(f"You have {self.limit_each} streams open, as many as one key may; close one first.")

    @contextmanager
    def place(self, reader: Principal) -> Iterator[None]:
        """A place for as long as the block runs."""
        self._open[reader.id] += 1
        try:
            yield
        finally:
            self._open[reader.id] -= 1


async def follow(
    database: ProjectDatabase, run_id: str, after_seq: int, *, seconds: float, poll_seconds: float = POLL_SECONDS
) -> AsyncIterator[ServerSentEvent]:
    """The history behind `after_seq`, then what comes, until the run has ended; with the run's progress between.

    A sequence number that this history does not have is of another one: `resync` says so, and all of it follows. A reader
    that is slow is waited for: nothing is queued for it.
    """
    shown: RunProgress | None = None
    until = time.monotonic() + seconds
    last_seq = await run_in_threadpool(_last_seq, database, run_id)
    if after_seq > last_seq:
        yield ServerSentEvent(event="resync", data={"last_seq": last_seq}, id="0")
        after_seq = 0
    while time.monotonic() < until:
        items, progress = await run_in_threadpool(_news, database, run_id, after_seq)
        for item in items:
            yield ServerSentEvent(event=item.kind, data=item.model_dump(mode="json"), id=str(item.seq))
            after_seq = item.seq
        if progress is None:
            return  # the run was removed
        if progress != shown:
            yield ServerSentEvent(event="progress", data=progress.model_dump(mode="json"))
            shown = progress
        if len(items) == _BATCH:
            continue
        if progress.state in ENDED_STATES:
            yield ServerSentEvent(event="end", data={"state": progress.state})
            return
        await asyncio.sleep(poll_seconds)


def _last_seq(database: ProjectDatabase, run_id: str) -> int:
    with database.read() as session:
        return session.scalar(select(func.max(Event.seq)).where(Event.run_id == run_id)) or 0


def _news(database: ProjectDatabase, run_id: str, after_seq: int) -> tuple[list[StoredEvent], RunProgress | None]:
    query = select(Run.state, Run.desired_state, Run.phase, Run.last_step.label("step"), Run.row_version)
    with database.read() as session:
        # The state first: what ended a run is then among the events that are read after it.
        row = session.execute(query.where(Run.id == run_id)).mappings().one_or_none()
        items = events(session, run_id, after_seq=after_seq, limit=_BATCH).items
    return items, None if row is None else RunProgress.model_validate(dict(row))
