"""Which prompts the student answers. It imports without torch."""

from typing import Literal

from engine.frozen import Frozen, Reference


class PromptSpec(Frozen):
    """The prompts that the student answers during training."""

    path: Reference
    """A JSONL file with one object per line and a `prompt` in each; `builtin:…` and `home:…` work too."""
    template: Literal["plain", "chat"] = "plain"
    """`plain` sends the prompt as it is; `chat` wraps it as a user message in the student's chat template."""
