"""Ends what a lease protects before the lease does, even while the thread that should renew it hangs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from worker.lease import Lease

_SECONDS = 0.5


@contextmanager
def watchdog(lease: Lease, end: Callable[[], bool]) -> Iterator[None]:
    """Beside the block: once the lease is nearly over, call `end` until it says that there was something to end."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_SECONDS):
            if lease.is_nearly_over and end():
                return

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
