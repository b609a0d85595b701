"""The worker. A message is only a doorbell: what to work on, and whether, is decided in the database."""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import billiard
import billiard.pool
from celery.signals import worker_process_init, worker_ready, worker_shutdown, worker_shutting_down
from sqlalchemy.orm import Session

from backend.artifact_store import artifact_store
from backend.database import Database
from backend.doorbell import PREFLIGHT_TASK, RUN_TASK
from backend.logs import bound
from backend.queries.analyses import claim_analysis, has_claimable_analysis
from backend.queries.claims import claim_run
from backend.queries.drains import draining
from backend.queries.leases import at_work, claim_preflight, keep_worker, remove_worker, set_worker_run
from backend.queries.queue import has_claimable_run
from backend.resources import WorkerCapabilities
from backend.settings import Settings
from worker.analysis import work_on_analysis
from worker.celery_app import celery_app, is_needed, ring_for_itself
from worker.engine_process import engine_environment
from worker.engine_server import EngineServer
from worker.identity import HOST, ProcessIdentity, boot_id
from worker.lease import DATABASE_OUTAGES
from worker.preflight import answer
from worker.resources import capabilities
from worker.schema import OtherSchema, refuse_other_schema
from worker.settings import WorkerSettings
from worker.slots import Slot, free_slot, slots_of_this_machine
from worker.store_garbage import LocalCopies
from worker.supervisor import Supervisor
from worker.workplace import Workplace

_HEARTBEAT_SECONDS = 10.0

_log = logging.getLogger(__name__)

settings = Settings()
worker_settings = WorkerSettings()
slots = slots_of_this_machine(worker_settings.slots, worker_settings.gpus_per_slot, worker_settings.worker_gpus)

# A child that ends waits until the main process has read what it answered, which a main process that is shutting down may no
# longer do: after 30 s it gave up. Nobody needs the answers, so 2 s are enough. Measured: 2 of 85 shutdowns hung.
billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 20

# Made before Celery forks, so that the children see the main process set it.
_shutdown = billiard.Event()
_main_pid = os.getpid()
_place: Workplace | None = None
# Ids of what is queued and this version of Incipit cannot read: it waits for another worker.
_unreadable: set[str] = set()
# Made before Celery forks, too: the main process keeps it alive, the children ask it for engines.
_engine_server = (
    EngineServer(
        engine_environment({"INCIPIT_HOME": str(settings.home), **slots[0].environment()}),
        folder=settings.home,
        log_path=settings.home / "logs" / "engine-server.log",
    )
    if worker_settings.engine_server and EngineServer.is_possible()
    else None
)

app = celery_app(settings.broker_url, num_slots=len(slots))


def run(_run_id: str) -> None:
    """Work on queued analyses and runs, the most urgent first, until there is none; the id is only a hint."""
    try:
        _work()
    except OtherSchema as error:
        _log.error("%s", error)


def preflight(_preflight_id: str) -> None:
    """Answer queued preflights, the oldest first, until there is none; the id is only a hint."""
    try:
        _answer_preflights()
    except OtherSchema as error:
        _log.error("%s", error)


def _work() -> None:
    while not _shutdown.is_set():
        tried = []
        for slot in _open_slots():
            with free_slot([slot], settings.home / "slots") as free:
                if free is None:
                    continue  # whoever holds it looks for more work afterwards
                tried.append(slot)
                if _work_on_next_analysis(slot) or _work_on_next_run(slot):
                    break
        # A doorbell that rang while a slot was locked has found it taken: look again now that it is not.
        else:
            if not any(_has_work(slot) for slot in tried):
                return


def _open_slots() -> list[Slot]:
    """The slots that are not being drained."""
    with _workplace().database.read() as session:
        closed = draining(session, [_worker_id(slot) for slot in slots])
    return [slot for slot in slots if _worker_id(slot) not in closed]


def _answer_preflights() -> None:
    place = _workplace()
    while not _shutdown.is_set() and (open_slots := _open_slots()):
        with place.database.write() as session:
            refuse_other_schema(session)
            claim = claim_preflight(session, ProcessIdentity.own().name, unreadable=_unreadable)
        if claim is None:
            return
        answer(claim, open_slots, place)


def _work_on_next_analysis(slot: Slot) -> bool:
    """Claim an analysis and bring it to an end; False when there was none. They come first: they take minutes."""
    place = _workplace()
    with place.database.write() as session:
        refuse_other_schema(session)
        if _is_closed(session, slot):
            return False
        claim = claim_analysis(session, ProcessIdentity.own().name, unreadable=_unreadable)
        if claim is None:
            return False
        set_worker_run(session, _worker_id(slot), claim.analysis_id)
    with _occupied(slot):
        work_on_analysis(claim, slot, place)
    return True


def _work_on_next_run(slot: Slot) -> bool:
    """Claim a run and bring its attempt to an end; False when there was none."""
    place = _workplace()
    with place.database.write() as session:
        refuse_other_schema(session)
        if _is_closed(session, slot):
            return False
        claim = claim_run(
            session,
            owner=ProcessIdentity.own().name,
            host=HOST,
            boot_id=boot_id(),
            lease_seconds=worker_settings.lease_seconds,
            worker=_capabilities(slot),
            unreadable=_unreadable,
        )
        if claim is None:
            return False
        set_worker_run(session, _worker_id(slot), claim.run_id)
    with _occupied(slot), bound(run=claim.run_id, attempt=claim.attempt, fence=claim.fence):
        Supervisor(claim, slot, place, worker_id=_worker_id(slot)).work()
    LocalCopies(place.database, place.artifacts).drop()
    return True


def _is_closed(session: Session, slot: Slot) -> bool:
    """Whether the slot is being drained, in the transaction that is about to claim something for it."""
    return bool(draining(session, [_worker_id(slot)]))


@contextmanager
def _occupied(slot: Slot) -> Iterator[None]:
    """Afterwards the slot is noted as free."""
    try:
        yield
    finally:
        with _workplace().database.write() as session:
            set_worker_run(session, _worker_id(slot), None)


def _has_work(slot: Slot) -> bool:
    with _workplace().database.read() as session:
        if _is_closed(session, slot):
            return False
        is_run_waiting = has_claimable_run(session, _capabilities(slot), beside=_unreadable)
        return is_run_waiting or has_claimable_analysis(session, beside=_unreadable)


def _capabilities(slot: Slot) -> WorkerCapabilities:
    return capabilities(slot, worker_settings.labels)


def _workplace() -> Workplace:
    global _place
    if _place is None:
        database = Database(settings.sql_url)
        _place = Workplace(
            database,
            settings.home,
            settings.run_dir,
            worker_settings,
            _shutdown.is_set,
            settings.limits,
            _engine_server,
            artifact_store(settings),
        )
    return _place


def _worker_id(slot: Slot) -> str:
    return f"{HOST}:{boot_id()}:{_main_pid}:{slot.index}"


def _forget_inherited_connections(**_: Any) -> None:
    """A database connection must not be shared with the main process, which opened one for its heartbeat."""
    global _place
    if _place is not None:
        _place.database.engine.dispose(close=False)
    _place = None


def _announce(sender: Any, **_: Any) -> None:
    _heartbeat()
    sender.timer.call_repeatedly(_HEARTBEAT_SECONDS, _heartbeat)
    if _engine_server is not None:
        sender.timer.call_repeatedly(_HEARTBEAT_SECONDS, _engine_server.keep)
        _engine_server.keep()


def _heartbeat() -> None:
    identity = ProcessIdentity.own()
    try:
        with ExitStack() as held, _workplace().database.write() as session:
            for slot in slots:
                keep_worker(
                    session,
                    _worker_id(slot),
                    host=HOST,
                    boot_id=boot_id(),
                    pid=identity.pid,
                    pid_started=float(identity.started),
                    slot=slot.name,
                    capabilities=_capabilities(slot),
                )
            _note_freed_slots(session, held)
            known = [(_worker_id(slot), _capabilities(slot)) for slot in slots]
            is_called = is_needed(session, known)
    except DATABASE_OUTAGES as error:
        _log.warning("This worker's heartbeat was not written: %s", error)
        return
    if is_called:
        ring_for_itself(app)


def _note_freed_slots(session: Session, held: ExitStack) -> None:
    """Note as free what a child left that was killed, or that lost the database: nobody works in a slot that can be locked.

    The locks are `held` until that is committed, so that no child takes such a slot in between.
    """
    noted = at_work(session, [_worker_id(slot) for slot in slots])
    for slot in slots:
        if _worker_id(slot) in noted and held.enter_context(free_slot([slot], settings.home / "slots")) is not None:
            set_worker_run(session, _worker_id(slot), None)


def _tell_supervisors(**_: Any) -> None:
    _shutdown.set()


def _leave(**_: Any) -> None:
    if os.getpid() != _main_pid:
        return
    try:
        with _workplace().database.write() as session:
            for slot in slots:
                remove_worker(session, _worker_id(slot))
    except DATABASE_OUTAGES as error:
        _log.warning("This worker could not sign off: %s", error)


# Calls instead of decorators, because Celery's have no types.
app.task(run, name=RUN_TASK)
app.task(preflight, name=PREFLIGHT_TASK)
worker_process_init.connect(_forget_inherited_connections)
worker_ready.connect(_announce)
worker_shutting_down.connect(_tell_supervisors)
worker_shutdown.connect(_leave)
