"""Addresses that work without credentials until they expire, for downloads by a browser."""

import hashlib
import hmac
import time
from urllib.parse import quote, urlencode

from backend.problems import Refusal

VALID_SECONDS = 15 * 60

PREFIX = "/api/v1/download"


def signed_url(secret: bytes, resource: str, expires: int) -> str:
    """The address of a resource (its path below PREFIX), valid until `expires` (Unix seconds)."""
    query = urlencode({"expires": expires, "signature": _signature(secret, resource, expires)})
    return f"{PREFIX}/{quote(resource)}?{query}"


def require_signature(secret: bytes, resource: str, expires: int, signature: str) -> None:
    """Refuses a signature that this installation did not make for this resource and time, and one that has expired."""
    if not hmac.compare_digest(_signature(secret, resource, expires).encode(), signature.encode("utf-8", "replace")):
        raise Refusal(403, "This link was changed or belongs to another installation; ask for a new link.")
    if expires < time.time():
        raise Refusal(403, f"This link was valid for {VALID_SECONDS // 60} minutes and has expired; ask for a new one.")


def _signature(secret: bytes, resource: str, expires: int) -> str:
    return hmac.new(secret, f"{resource}\n{expires}".encode(), hashlib.sha256).hexdigest()
