"""Which prompts the student answers. It imports without torch."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from engine.frozen import Frozen, Reference
from engine.prompt_reference import parsed_reference


def _understood(reference: str) -> str:
    try:
        parsed_reference(reference)
    except ValueError as error:
        raise PydanticCustomError("reference", "but {problem}", {"problem": str(error)}) from None
    return reference


PromptReference = Annotated[Reference, AfterValidator(_understood)]
"""Where prompts are read: a path, `hf:…` or `reasoning_gym:…`; see engine/prompt_reference.py."""
Column = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$")]


class PromptColumns(Frozen):
    """What the columns of a table, or the keys of JSON lines, are called."""

    prompt_column: Column = "prompt"
    """Column of the prompt."""
    answer_column: Column = "answer"
    """Column of the right answer, which evaluation compares with."""
    completion_column: Column = "completion"
    """Column of a whole text that answers the prompt, where there is one."""


class PromptSpec(PromptColumns):
    """The prompts that the student answers during training."""

    path: PromptReference
    """JSON lines, `.csv` or `.parquet`; `hf:org/name@revision?split=train&subset=main`; `reasoning_gym:chain_sum?size=1000&seed=0`."""
    template: Literal["plain", "chat"] = "plain"
    """`plain` sends the prompt as it is; `chat` wraps it as a user message in the student's chat template."""
    max_prompt_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Longest prompt, in tokens, in training and evaluation; empty for what the models' contexts leave beside the completion."""
    overlong: Literal["refuse", "drop", "truncate_left"] = "refuse"
    """What happens to longer prompts: the run is refused, they are left out, or their beginning is cut off; always counted and told."""
