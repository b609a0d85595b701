"""The base of every record that leaves or enters the engine as JSON, and the types that many of them share."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Immutable, refuses unknown keys and non-finite numbers; a field's docstring is its schema description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, protected_namespaces=()
    )


STORED: dict[str, Any] = {"is_stored": True}
"""Context of a validation of what an earlier version has accepted: a newer rule on how fields fit together must not make it
unreadable."""

Reference = Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f]+$")]
"""A path, a hub id, `builtin:…` or `home:…`; see engine/locations.py."""
Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""How many of something, or how often."""
