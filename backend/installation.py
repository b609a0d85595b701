"""What the API says of the installation itself; the rest is in schemas.py."""

from typing import Literal

from engine.frozen import Frozen


class Version(Frozen):
    """What is installed."""

    version: str
    """Of Incipit."""
    api: Literal["v1"] = "v1"
    spec_version: int
    event_version: int
    schema_revision: str
    """Of the database."""


class Liveness(Frozen):
    """The process answers."""

    status: Literal["ok"] = "ok"
