"""Which prompts the student answers. It imports without torch."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
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
"""Where prompts are read: a path, `upload:…`, `hf:…` or `reasoning_gym:…`; see engine/prompt_reference.py."""
Column = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$")]


class PromptColumns(Frozen):
    """What the columns of a table, or the keys of JSON lines, are called."""

    prompt_column: Column = "prompt"
    """Column of the prompt."""
    answer_column: Column = "answer"
    """Column of the right answer, which evaluation compares with."""
    completion_column: Column = "completion"
    """Column of a whole text that answers the prompt, where there is one."""
    tag_column: Column = "tag"
    """Column of what a prompt belongs to, where there is one: it says which of several served teachers is asked."""


class PromptSpec(PromptColumns):
    """The prompts that the student answers during training."""

    path: PromptReference
    """JSON lines, `.csv` or `.parquet`; `upload:` and a sha256; `hf:org/name@revision?split=train&subset=main`;
    `reasoning_gym:chain_sum?size=1000&seed=0`, behind which the task's own settings may follow, such as `&max_digits=2`."""
    template: Literal["plain", "chat"] = "plain"
    """`plain` sends the prompt as it is; `chat` wraps it as a user message in the student's chat template."""
    system_message: Annotated[str, Field(min_length=1, max_length=20_000)] | None = None
    """A system message before each chat; empty for none."""
    enable_thinking: bool | None = None
    """Tells a chat template that knows it whether the model thinks before it answers; empty leaves the template's default."""
    max_prompt_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Longest prompt, in tokens, in training and evaluation; empty for what the models' contexts leave beside the completion."""
    overlong: Literal["refuse", "drop", "truncate_left"] = "refuse"
    """What happens to longer prompts: the run is refused, they are left out, or their beginning is cut off; always counted and told."""

    @model_validator(mode="after")
    def _chat_options_have_a_chat(self) -> Self:
        if self.template == "plain" and (self.system_message is not None or self.enable_thinking is not None):
            name = "enable_thinking" if self.system_message is None else "system_message"
            problem = f"{name} is set but template is 'plain'; set template to chat or leave {name} empty."
            raise PydanticCustomError("contradiction", "{problem}", {"problem": problem})
        return self
