"""Where a list goes on: an opaque text that holds the last id of the page before."""

import base64
import binascii
from uuid import UUID

from backend.problems import Refusal


def to_cursor(last_id: str) -> str:
    """The cursor behind this id."""
    return base64.urlsafe_b64encode(UUID(last_id).bytes).decode().rstrip("=")


def from_cursor(cursor: str) -> str:
    """The id that a cursor stands behind; refuses anything that to_cursor did not make."""
    try:
        return str(UUID(bytes=base64.b64decode(cursor + "==", altchars=b"-_", validate=True)))
    except (ValueError, binascii.Error):
        raise Refusal(422, f"cursor is {cursor[:80]!r}, which is no next_cursor of this list; leave it out.") from None
