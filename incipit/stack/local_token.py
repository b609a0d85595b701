"""The token of one start of the local stack: who can read the file in the home may use its API, nobody else."""

import os
import secrets
from pathlib import Path

_NAME = "local_token"
_TOKEN_BYTES = 32


def new_local_token(home: Path) -> str:
    """A fresh random token, also written to a file in the home that only this user can read."""
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    draft = home / f".{_NAME}-{os.getpid()}-{secrets.token_hex(4)}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token)
    draft.replace(home / _NAME)
    return token


def local_token(home: Path) -> str | None:
    """The token of the stack that runs in a home; None when none does."""
    try:
        return (home / _NAME).read_text()
    except FileNotFoundError:
        return None


def remove_local_token(home: Path) -> None:
    """Forget the token of a stack that has ended."""
    (home / _NAME).unlink(missing_ok=True)
