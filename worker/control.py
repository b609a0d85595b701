"""The control process, `python -m worker.control`: one per installation, guarded by a lease row.

Each turn it takes runs back from dead workers, rings for work that nobody claimed, ends preflights that nobody took,
checkpoints SQLite's write-ahead log, sends alerts and removes what dead attempts left on the disk and in the store.
"""

import logging
import signal
import threading
import time

from celery import Celery
from kombu.exceptions import OperationalError as BrokerError
from pydantic import ValidationError
from sqlalchemy import text

from backend.artifact_store import artifact_store
from backend.database import Database
from backend.doorbell import PREFLIGHT_TASK, QUEUE, RUN_TASK
from backend.logs import set_up_logs
from backend.queries import leases
from backend.queries.analyses import extend_analysis_leases, take_back_analyses, unclaimed_analyses
from backend.queries.claims import extend_leases, reap
from backend.queries.raising import raise_standstills
from backend.queries.wishes import settle_queued
from backend.queries.workers import num_present
from backend.settings import Settings
from worker.alert_sender import AlertSender
from worker.export_garbage import ExportGarbage
from worker.garbage import GarbageCollector
from worker.identity import ProcessIdentity, is_dead
from worker.lease import DATABASE_OUTAGES
from worker.schema import OtherSchema, refuse_other_schema
from worker.settings import WorkerSettings, give_up, sentences_of
from worker.store_garbage import StoreGarbage
from worker.upload_garbage import UploadGarbage

TURN_SECONDS = 10.0
_RING_AGAIN_SECONDS = 60.0
_MAX_RINGS = 50
_PREFLIGHT_WAIT_SECONDS = 120.0
# A wall clock that moved this much more than the monotonic one was set, or the machine slept.
_CLOCK_JUMP_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Control:
    """What the control process knows between its turns."""

    def __init__(self, settings: Settings) -> None:
        self.database = Database(settings.sql_url, checkpoints_wal=True)
        self.owner = ProcessIdentity.own().name
        self._broker = Celery("incipit-control", broker=settings.broker_url, set_as_current=False)
        options = {"socket_timeout": 5, "socket_connect_timeout": 3, "max_retries": 1}
        self._broker.conf.broker_transport_options = options
        self._settings = WorkerSettings()
        self._clock_offset = time.time() - time.monotonic()
        self._garbage = GarbageCollector(self.database, settings.run_dir)
        self._store_garbage = StoreGarbage(self.database, artifact_store(settings))
        self._alert_sender = AlertSender(self.database, settings.signing_secret(), settings.webhook_networks)
        self._upload_garbage = UploadGarbage(self.database, settings.home)
        self._export_garbage = ExportGarbage(self.database, settings.export_dir)

    def turn(self) -> bool:
        """Do what is due; False when another process is in control."""
        with self.database.write() as session:
            refuse_other_schema(session)
            if not leases.hold_control(session, self.owner, is_dead):
                return False
        self._take_back_runs()
        with self.database.write() as session:
            leases.give_up_preflights(session, waiting_seconds=_PREFLIGHT_WAIT_SECONDS)
            take_back_analyses(session)
            leases.forget_silent_workers(session)
        self._ring_again()
        self._checkpoint_wal()
        self._garbage.turn()
        self._upload_garbage.turn()
        self._export_garbage.turn()
        self._store_garbage.turn()
        self._alert_sender.turn()
        return True

    def close(self) -> None:
        """Let another process take control at once."""
        try:
            with self.database.write() as session:
                leases.release_control(session, self.owner)
        except DATABASE_OUTAGES as error:
            _log.warning("Control was not handed over, its lease will run out: %s", error)
        self._store_garbage.close()
        self._alert_sender.close()
        self.database.close()

    def _take_back_runs(self) -> None:
        with self.database.write() as session:
            if self._clock_jumped() and self.database.is_sqlite:
                # SQLite's times are this machine's. After a jump every lease looks over although its holder lives.
                _log.warning("The clock has jumped: all leases are extended once.")
                extend_leases(session, lease_seconds=self._settings.lease_seconds)
                extend_analysis_leases(session)
            limits = {"start_seconds": self._settings.start_seconds, "retry_seconds": self._settings.retry_seconds}
            for run_id in reap(session, is_dead, **limits):
                _log.warning("Run %s was taken back from a worker that is gone.", run_id)
            settle_queued(session)
            raise_standstills(session)

    def _clock_jumped(self) -> bool:
        offset = time.time() - time.monotonic()
        jumped = abs(offset - self._clock_offset) > _CLOCK_JUMP_SECONDS
        self._clock_offset = offset
        return jumped

    def _ring_again(self) -> None:
        with self.database.read() as session:
            run_ids, preflight_ids = leases.unclaimed(session, silent_seconds=_RING_AGAIN_SECONDS)
            most = max(_MAX_RINGS, num_present(session))
        with self.database.write() as session:
            analysis_ids = unclaimed_analyses(session, silent_seconds=_RING_AGAIN_SECONDS)
        if not run_ids and not preflight_ids and not analysis_ids:
            return
        try:
            with self._broker.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=5)
                num_waiting = connection.default_channel.queue_declare(QUEUE).message_count
            for preflight_id in preflight_ids:
                self._ring(PREFLIGHT_TASK, preflight_id)
            # Runs that wait for a slot are no reason for more messages than there are runs.
            # Nor for more than all slots can take up: runs that no worker can take wait by the thousand.
            for id in [*analysis_ids, *run_ids][num_waiting:most]:
                self._ring(RUN_TASK, id)
        except (BrokerError, OSError) as error:
            _log.warning("The broker does not answer, queued work waits: %s", error)
            return
        with self.database.write() as session:
            leases.note_rung(session, run_ids, preflight_ids)

    def _ring(self, task: str, id: str) -> None:
        self._broker.send_task(task, args=[id], queue=QUEUE, retry=False, ignore_result=True)

    def _checkpoint_wal(self) -> None:
        if self.database.is_sqlite:
            with self.database.engine.connect() as connection:
                connection.execution_options(isolation_level="AUTOCOMMIT")
                connection.execute(text("PRAGMA wal_checkpoint(PASSIVE)"))


def main() -> None:
    """Turn every ten seconds until SIGTERM or SIGINT; what is wrong before that is one sentence and a status."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        settings = Settings()
        set_up_logs("control", settings.log_level)
        control = Control(settings)
    except ValidationError as error:
        give_up(*sentences_of(error))
    in_control: bool | None = None
    while True:
        try:
            now_in_control = control.turn()
            if now_in_control != in_control:
                _log.info("In control." if now_in_control else "Another process is in control; standing by.")
            in_control = now_in_control
        except OtherSchema as error:
            give_up(str(error))
        except DATABASE_OUTAGES as error:
            _log.warning("The database does not answer, the turn is skipped: %s", error)
        if ended.wait(TURN_SECONDS):
            break
    control.close()


if __name__ == "__main__":
    main()
