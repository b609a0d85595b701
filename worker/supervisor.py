"""One claimed run from its spec to its ending: start the engine, record it, keep the lease, stop it when told."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from backend.queries.claims import Claim, Ending, LeaseLost, end_attempt, set_engine_process
from backend.queries.drains import gives_back
from backend.queries.retries import RETRYABLE
from backend.queries.transitions import TransitionRejected, transition
from backend.queries.wishes import Wish, wish_of
from backend.run_states import RunState
from backend.store_problem import StoreProblem
from engine.control import PULSE
from engine.events import Finished
from worker.endings import (
    UnwritableFolder,
    crashed,
    cut_short,
    ending_of,
    failed,
    finished,
    stalled,
    unstored,
    unwritable,
)
from worker.engine_process import EngineProcess
from worker.estimation import keep_estimate
from worker.lease import DATABASE_OUTAGES, Lease
from worker.memory_kills import num_memory_kills
from worker.named_files import fetch_named
from worker.pulse import Pulse
from worker.recorder import Recorder, UnreadableEvents
from worker.resources import ResourceWatch
from worker.resume import FolderUnreachable, NoCheckpointLeft, resume_checkpoint
from worker.slots import Slot
from worker.stopping import Stopping
from worker.uploads import StoreUnavailable
from worker.watchdog import watchdog
from worker.workplace import Workplace, write_spec

_TURN_SECONDS = 0.25
_WISH_SECONDS = 2.0  # between looks at desired_state

_log = logging.getLogger(__name__)
T = TypeVar("T")


class _Leaves(Exception):
    """The worker lets its runs go before this one's lost attempts are recorded."""


class Supervisor:
    """Watches over one attempt. Use it from the main thread, with `work`."""

    def __init__(self, claim: Claim, slot: Slot, place: Workplace, *, worker_id: str = "") -> None:
        """`worker_id` is the slot in the list of workers, by which it may be drained."""
        self.claim = claim
        self.slot = slot
        self.place = place
        self.worker_id = worker_id
        self.run_folder = place.run_dir / claim.run_id
        self.lease = Lease(place.database, claim, place.settings.lease_seconds)
        patience = place.settings.store_patience_seconds
        self.recorder = Recorder(place.database, claim, self.run_folder, place.limits, place.artifacts, patience)
        self._pulse = Pulse(self.recorder.attempt_folder(claim.fence) / PULSE)
        self._resources = ResourceWatch(place.database, claim, slot, place.run_dir)
        self._engine: EngineProcess | None = None
        self._wish: Wish = "run"
        self._is_given_back = False
        self._wish_read_at = 0.0
        self._stopping = Stopping(place.settings)
        self._was_fenced = False
        self._unstored: str | None = None
        self._memory_kills_before = num_memory_kills()

    def work(self) -> None:
        """Bring the attempt to its end, whatever that is. When it returns, the engine is gone."""
        try:
            with watchdog(self.lease, self._fence):
                ending = self._despite_outages(self._ending_of_lost_attempts) or self._run_engine()
            self._close(ending)
        except (NoCheckpointLeft, FolderUnreachable) as lost:
            self._close(lost.ending)
        except LeaseLost as lost:
            _log.warning("%s Its engine is ended.", lost)
        except UnwritableFolder as error:
            self._close(unwritable(error))
        except (StoreUnavailable, StoreProblem) as error:
            self._close(unstored(str(error), wish=self._wish))
        except _Leaves:
            self._close(cut_short())
        except Exception as error:  # the outermost frame of an attempt: the run must not stay held by nobody
            _log.exception("Supervising run %s failed.", self.claim.run_id)
            self._kill_engine()
            cause = f"The worker failed while it supervised the run ({type(error).__name__}: {error})."
            self._close(crashed(None, cause[:1000], ""))
        finally:
            self._kill_engine()
            self.recorder.close()

    def _ending_of_lost_attempts(self) -> Ending | None:
        def while_storing() -> None:
            self.lease.keep_or_lose()
            if self._leaving():
                raise _Leaves

        last_word = self.recorder.catch_up(while_storing)
        if last_word is None:
            return None
        if isinstance(last_word, Finished):
            return finished(last_word)
        # What may pass was waited for when the run was taken back.
        return None if last_word.failure in RETRYABLE else failed(last_word)

    def _run_engine(self) -> Ending:
        too_small = self.slot.too_small_for(self.claim.spec.num_processes, self.claim.spec.device)
        if too_small is not None:
            return Ending("failed", too_small, None, "bad_spec", too_small)
        engine = self._start_engine()
        while (exit_code := engine.exit_code()) is None:
            self._turn(engine)
            if self._pulse.silent_seconds() > self.place.settings.stall_seconds:
                engine.kill()
                is_recorded = self._record_the_rest()
                last_word = self._despite_outages(self.recorder.last_word)
                return replace(stalled(self.place.settings.stall_seconds, last_word), has_unrecorded=not is_recorded)
            time.sleep(_TURN_SECONDS)
        if self._was_fenced:
            raise LeaseLost(f"The lease of run {self.claim.run_id} could not be renewed in time.")
        if not self._record_the_rest():
            return cut_short() if self._unstored is None else unstored(self._unstored, wish=self._wish)
        return ending_of(
            exit_code,
            self._despite_outages(self.recorder.last_word),
            wish=self._wish,
            leaving=self._leaving(),
            log_tail=engine.log_tail(),
            was_pressed=self._stopping.is_pressed,
            was_memory_kill=num_memory_kills() > self._memory_kills_before,
        )

    def _start_engine(self) -> EngineProcess:
        folder = self.recorder.attempt_folder(self.claim.fence)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_spec(self.run_folder / "spec.json", self.claim)
            (folder / "engine.log").touch()
        except OSError as error:
            raise UnwritableFolder(folder, error) from error
        self._despite_outages(lambda: keep_estimate(self.place.database, self.claim))
        arguments = ["train", "--spec", str(self.run_folder / "spec.json"), "--out", str(self.run_folder)]
        arguments += ["--attempt", str(self.claim.fence), "--supervised"]
        database, store = self.place.database, self.place.artifacts
        checkpoint = self._despite_outages(lambda: resume_checkpoint(database, self.claim, store, self.lease.keep))
        self._despite_outages(lambda: fetch_named(database, store, self.place.home, self.claim.spec, self.lease.keep))
        if checkpoint is not None:
            arguments += ["--resume", checkpoint.as_posix()]
        self._engine = EngineProcess(
            arguments,
            log_path=folder / "engine.log",
            folder=self.place.home,
            environment={"INCIPIT_HOME": str(self.place.home), **self.slot.environment()},
            server=self.place.engine_server,
            while_waiting=self.lease.keep_or_lose,
            num_processes=self.claim.spec.num_processes,
            python=self.place.settings.vllm_python if self.claim.spec.needs_vllm else None,
        )
        self._despite_outages(self._note_engine)
        self._resources.begin(self._engine.pid)
        return self._engine

    def _note_engine(self) -> None:
        assert self._engine is not None
        with self.place.database.write() as session:
            set_engine_process(session, self.claim, pid=self._engine.pid, pid_started=self._engine.started)

    def _turn(self, engine: EngineProcess) -> None:
        try:
            while self._unstored is None and self.recorder.advance() and not self.lease.is_overdue:
                self.lease.keep()
            self._read_wish()
            self._resources.keep()
        except DATABASE_OUTAGES as error:
            _log.warning("The database did not answer, run %s goes on meanwhile: %s", self.claim.run_id, error)
        except StoreUnavailable as error:
            self._unstored = str(error)
        self.lease.keep_or_lose()
        if self.lease.is_overdue or self._wish != "run" or self._leaving() or self._unstored:
            self._stopping.tell(engine, with_checkpoint=self._wish != "cancel")
        self._stopping.press(engine)

    def _leaving(self) -> str | None:
        """Why this worker lets its runs go, if it does."""
        return "is shutting down" if self.place.is_shutting_down() else "is drained" if self._is_given_back else None

    def _read_wish(self) -> None:
        if time.monotonic() - self._wish_read_at < _WISH_SECONDS:
            return
        self._wish_read_at = time.monotonic()
        with self.place.database.read() as session:
            wish = wish_of(session, self.claim.run_id)
            self._is_given_back = self._is_given_back or gives_back(session, self.worker_id)
        # An engine that was told to stop cannot be told to go on: a pause that is taken back ends in the queue.
        if wish in (self._wish, "run"):
            return
        self._wish = wish
        to: RunState = "pausing" if wish == "pause" else "cancelling"
        reason = "The engine was told to stop, as asked."
        with suppress(TransitionRejected), self.place.database.write() as session:
            transition(session, self.claim.run_id, to, actor="holder", reason=reason, fence=self.claim.fence)

    def _record_the_rest(self) -> bool:
        """Record all that the ended engine has emitted, as long as the lease allows; False when it is not all stored. Raises LeaseLost."""
        began = time.monotonic()
        while self._unstored is None:
            try:
                while self.recorder.advance():
                    self.lease.keep()
                if not self.recorder.is_storing:
                    return True
                if self._leaving() and time.monotonic() - began > self.place.settings.last_storing_seconds:
                    return False
                time.sleep(_TURN_SECONDS)
                self.lease.keep_or_lose()
                continue
            except StoreUnavailable as error:
                self._unstored = str(error)
                continue
            except DATABASE_OUTAGES as error:
                _log.warning("The end of run %s is not recorded yet: %s", self.claim.run_id, error)
            except UnreadableEvents:
                # A killed engine on a full disk can leave half a line in the middle; what counts is before it.
                _log.exception("Run %s", self.claim.run_id)
                return True
            self._wait_for_database()
        return False

    def _close(self, ending: Ending) -> None:
        while True:
            try:
                with self.place.database.write() as session:
                    end_attempt(session, self.claim, ending, retry_seconds=self.place.settings.retry_seconds)
                _log.info("Run %s, attempt %s: %s", self.claim.run_id, self.claim.fence, ending.reason)
                return
            except DATABASE_OUTAGES as error:
                _log.warning("The end of run %s is not noted yet: %s", self.claim.run_id, error)
            except LeaseLost as lost:
                _log.warning("%s", lost)
                return
            self._wait_for_database()

    def _despite_outages(self, act: Callable[[], T]) -> T:
        """What `act` returns, as soon as database and store answer. Raises LeaseLost or StoreProblem when that takes too long."""
        until = time.monotonic() + self.place.settings.store_patience_seconds
        while True:
            try:
                return act()
            except DATABASE_OUTAGES as error:
                _log.warning("The database did not answer, run %s waits: %s", self.claim.run_id, error)
            except StoreProblem as error:
                if time.monotonic() > until or self._leaving():
                    raise
                _log.warning("The store did not answer, run %s waits: %s", self.claim.run_id, error)
            self._wait_for_database()

    def _wait_for_database(self) -> None:
        time.sleep(1.0)
        self.lease.keep_or_lose()

    def _fence(self) -> bool:
        """End the engine because its lease is nearly over; False when there is none."""
        if self._engine is None:
            return False
        self._was_fenced = True
        self._engine.kill()
        return True

    def _kill_engine(self) -> None:
        self._resources.end()
        if self._engine is not None:
            self._engine.kill()
