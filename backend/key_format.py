"""API keys as text: `incipit_<id>_<secret>`. Only the secret's hash is stored; 256 random bits need no slow hash."""

import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

PREFIX = "incipit_"
_ID_BYTES, _SECRET_BYTES = 8, 32
_KEY = re.compile(rf"{PREFIX}([0-9a-f]{{{2 * _ID_BYTES}}})_([0-9a-f]{{{2 * _SECRET_BYTES}}})", re.ASCII)


class KeyText(NamedTuple):
    """The two parts of a key."""

    id: str
    secret: str

    @property
    def text(self) -> str:
        """The key as people get it."""
        return f"{PREFIX}{self.id}_{self.secret}"

    @property
    def secret_sha256(self) -> str:
        """What is stored of the secret."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    def is_of(self, secret_sha256: str) -> bool:
        """Whether this is the secret of the stored hash; takes as long for every wrong one."""
        return hmac.compare_digest(self.secret_sha256, secret_sha256)


def new_key() -> KeyText:
    """A fresh random key."""
    return KeyText(secrets.token_hex(_ID_BYTES), secrets.token_hex(_SECRET_BYTES))


def parsed_key(text: str) -> KeyText | None:
    """The parts of a key; None when it is none."""
    match = _KEY.fullmatch(text)
    return KeyText(match[1], match[2]) if match else None
