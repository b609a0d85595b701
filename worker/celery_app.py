"""The Celery app as runs need it, and the queue that a machine's worker has for itself.

Messages are acknowledged early and never prefetched, so none is unacknowledged while a run is at work: Redis delivers
unacknowledged messages again after its visibility timeout, and long runs would run twice.
"""

import logging
from collections.abc import Sequence

from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy.orm import Session

from backend.doorbell import QUEUE, RUN_TASK
from backend.queries.leases import is_idle
from backend.queries.queue import has_claimable_run
from backend.resources import WorkerCapabilities
from worker.identity import HOST

_log = logging.getLogger(__name__)


def own_queue() -> str:
    """The name of the queue that only workers of this machine read."""
    return f"{QUEUE}.{HOST}"


def celery_app(broker_url: str, *, num_slots: int) -> Celery:
    """Made in the main process before it forks its children."""
    app = Celery("incipit", broker=broker_url, set_as_current=True)
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        task_queues={name: {"exchange": name, "routing_key": name} for name in (QUEUE, own_queue())},
        task_default_queue=QUEUE,
        task_create_missing_queues=False,
        task_track_started=False,
        worker_pool="prefork",
        # One more than there are slots: it answers preflights while runs are at work.
        worker_concurrency=num_slots + 1,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_max_tasks_per_child=20,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=0.0,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": 3600,
            "health_check_interval": 10,
            "socket_keepalive": True,
            "socket_connect_timeout": 3,
            "socket_timeout": 15,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
        },
    )
    return app


def is_needed(session: Session, slots: Sequence[tuple[str, WorkerCapabilities]]) -> bool:
    """Whether one of these slots, by its name in the list of workers, is idle though it could take a run.

    The message that told of the run may have gone to a worker that cannot take it, or that is being drained.
    """
    return any(is_idle(session, worker_id) and has_claimable_run(session, told) for worker_id, told in slots)


def ring_for_itself(app: Celery) -> None:
    """Wake a child of this machine's worker."""
    try:
        app.send_task(RUN_TASK, args=["own"], queue=own_queue(), retry=False, ignore_result=True)
    except (OperationalError, OSError) as error:
        _log.warning("The broker does not answer, runs wait for it: %s", error)
