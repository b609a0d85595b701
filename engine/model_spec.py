"""Which model a run opens. It imports without torch."""

import re
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from engine.frozen import Frozen, Reference

_WITH_REVISION = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]{1,128})")
_LOCAL = ("builtin:", "home:", "/", "./", "../", "~")


class ModelSpec(Frozen):
    """A causal language model that transformers knows."""

    # Lengths stand beside the patterns, not in them: \w{1,200} is compiled as 200 copies of a class of Unicode, 15 MB in every
    # process that reads a spec and 0.3 s before an engine begins.
    path: Reference
    """A folder or .gguf file on the worker, a hub id (`org/name@revision`), `builtin:…` (comes with Incipit) or `home:…` (INCIPIT_HOME)."""
    revision: Annotated[str, Field(pattern=r"^[\w./-]+$", max_length=128)] | None = None
    """Branch, tag or commit of a hub model, where the path names none; leave empty for a folder."""
    gguf_file: Annotated[str, Field(pattern=r"^[\w.-]+\.gguf$", max_length=205)] | None = None
    """A GGUF file in the folder or hub model; its weights are dequantized. Empty for safetensors."""

    @model_validator(mode="after")
    def _revision_is_named_once(self) -> Self:
        if self.revision is not None and self.hub_revision != self.revision:
            raise PydanticCustomError(
                "contradiction",
                "{problem}",
                {"problem": f"path names a revision and revision is {self.revision!r}; name one of them."},
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether the path can only be one of this machine."""
        return self.path.startswith(_LOCAL) or self.path.endswith(".gguf")

    @property
    def location(self) -> str:
        """The path without its revision."""
        found = None if self.is_local else _WITH_REVISION.fullmatch(self.path)
        return found["name"] if found else self.path

    @property
    def hub_revision(self) -> str | None:
        """The revision of a hub model, wherever it is named."""
        found = None if self.is_local else _WITH_REVISION.fullmatch(self.path)
        return found["revision"] if found else self.revision
