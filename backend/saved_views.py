"""Views that people keep with what they make of them."""

import hashlib
import json
from datetime import datetime
from typing import Annotated

from pydantic import Field

from engine.frozen import Frozen
from engine.spec import Name

Query = Annotated[str, Field(max_length=2000, pattern=r"^[!-~]*$")]
Note = Annotated[str, Field(max_length=10_000, pattern=r"^[^\x00]*$")]


class SavedViewWrite(Frozen):
    """What a person keeps: a comparison, by its address, with a hypothesis or a result."""

    name: Name
    """What the view is called."""
    note: Note = ""
    """A hypothesis or a result, in your words."""
    query: Query
    """The part of the page's address behind the question mark."""


class SavedView(SavedViewWrite):
    """A view of Compare that somebody of the project has kept."""

    id: str
    created_by: str
    created_at: datetime
    updated_at: datetime


def etag_of(view: SavedView) -> str:
    """The ETag of a view: what people change of it, which PUT asks for in If-Match."""
    content = json.dumps([view.name, view.note, view.query]).encode()
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'
