"""Tells the workers that there is work. Best effort: the work is in the database, and the control process rings again.

Publishing runs in a thread of its own, because a broker that hangs would hold up the request for as long.
"""

import contextlib
import logging
import queue
import threading
import time

from celery import Celery
from kombu.exceptions import OperationalError

QUEUE = "runs"
RUN_TASK = "worker.run"
PREFLIGHT_TASK = "worker.preflight"

_SOCKET_SECONDS = 2
_STATUS_SECONDS = 5.0  # for so long an answer about the broker stays good
_MAX_WAITING = 1000  # rings kept while the broker is slow; each names work that the database knows anyway

_log = logging.getLogger(__name__)


class Doorbell:
    """Sends one Celery message per piece of work, in the order of the calls."""

    def __init__(self, broker_url: str) -> None:
        self._app = Celery("incipit-doorbell", broker=broker_url, set_as_current=False)
        self._app.conf.update(
            task_ignore_result=True,
            broker_transport_options={
                "socket_timeout": _SOCKET_SECONDS,
                "socket_connect_timeout": _SOCKET_SECONDS,
                "max_retries": 1,
                "interval_start": 0,  # by default it waits two seconds before it tries again
            },
        )
        self._waiting: queue.Queue[tuple[str, str] | None] = queue.Queue(_MAX_WAITING)
        self._status: tuple[float, bool] | None = None
        self._thread = threading.Thread(target=self._publish, name="doorbell", daemon=True)
        self._thread.start()

    def ring_run(self, run_id: str) -> None:
        """Say that a run is queued; returns at once."""
        self._put(RUN_TASK, run_id)

    def ring_preflight(self, preflight_id: str) -> None:
        """Say that a preflight is queued; returns at once."""
        self._put(PREFLIGHT_TASK, preflight_id)

    def is_broker_up(self) -> bool:
        """Whether the broker answers; takes up to two seconds, and remembers the answer for five."""
        if self._status is None or time.monotonic() - self._status[0] > _STATUS_SECONDS:
            self._status = (time.monotonic(), self._reaches_broker())
        return self._status[1]

    def close(self) -> None:
        """Stop; what could not be sent is rung by the control process."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(timeout=_SOCKET_SECONDS)

    def _put(self, task: str, id: str) -> None:
        try:
            self._waiting.put_nowait((task, id))
        except queue.Full:
            _log.warning("The broker is slow: %s %s is left to the control process.", task, id)

    def _publish(self) -> None:
        while (ring := self._waiting.get()) is not None:
            task, id = ring
            try:
                self._app.send_task(task, args=[id], queue=QUEUE, retry=False, ignore_result=True)
            except (OperationalError, OSError) as error:
                _log.warning("The broker does not answer (%s): %s %s is left to the control process.", error, task, id)
                if not self._drop_waiting():
                    return

    def _drop_waiting(self) -> bool:
        """Forget the rings that wait, each of which would wait for the broker in vain; False when closed meanwhile."""
        with contextlib.suppress(queue.Empty):
            while self._waiting.get_nowait() is not None:
                pass
            return False
        return True

    def _reaches_broker(self) -> bool:
        try:
            with self._app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=_SOCKET_SECONDS)
                return True
        except (OperationalError, OSError):
            return False
