"""Ids of rows: UUID version 7 (RFC 9562), so that sorting by id sorts by creation time."""

import secrets
import threading
import time
import uuid

_lock = threading.Lock()
_last = 0  # the 48-bit millisecond and the 12-bit counter of the last id, as one number


def new_id() -> str:
    """A fresh id, larger than every id this process has made before."""
    global _last
    with _lock:
        _last = max(_last + 1, int(time.time() * 1000) << 12)
        milliseconds, counter = _last >> 12, _last & 0xFFF
    value = milliseconds << 80 | 0x7 << 76 | counter << 64 | 0b10 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=value))
