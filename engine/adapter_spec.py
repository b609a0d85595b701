"""Which of the student's weights are trained. It imports without torch."""

from typing import Annotated, Literal

from pydantic import Field

from engine.frozen import Frozen

ModuleName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^\w+$")]


class NoAdapter(Frozen):
    """All weights of the student are trained."""

    kind: Literal["none"] = "none"


class Lora(Frozen):
    """Low-rank adapters beside frozen weights (LoRA, Hu et al. 2021, arXiv 2106.09685), by peft.

    There is no dropout: models stay in evaluation mode, so that the same input gives the same loss.
    """

    kind: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Width of the adapters: an adapted layer of a inputs and b outputs has rank · (a + b) trained weights."""
    alpha: Annotated[int, Field(ge=1, le=65_536)] = 32
    """An adapter's output is scaled by alpha / rank; a usual choice is twice the rank."""
    target_modules: Annotated[tuple[ModuleName, ...], Field(max_length=64)] = ()
    """Names of the layers that get an adapter, such as q_proj; empty for all linear layers of the blocks."""


Adapter = Annotated[NoAdapter | Lora, Field(discriminator="kind")]
