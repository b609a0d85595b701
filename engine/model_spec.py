"""Which model a run opens. It imports without torch."""

from typing import Annotated

from pydantic import Field

from engine.frozen import Frozen, Reference


class ModelSpec(Frozen):
    """A causal language model in Hugging Face format."""

    path: Reference
    """A model folder on the worker, a hub id, `builtin:…` (comes with Incipit) or `home:…` (below INCIPIT_HOME)."""
    revision: Annotated[str, Field(pattern=r"^[\w./-]{1,128}$")] | None = None
    """Branch, tag or commit of a hub model; leave empty for a folder."""
