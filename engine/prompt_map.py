"""Which columns of a file that somebody uploads are what. It imports without torch."""

from collections.abc import Sequence
from typing import Self

from pydantic import model_validator

from engine.findings import misfit
from engine.frozen import Frozen
from engine.prompt_spec import Column

# What data sets call them, the likeliest first.
_USUAL = {
    "messages": ("messages", "conversations", "conversation", "chat"),
    "prompt": ("prompt", "question", "problem", "instruction", "query", "input", "text"),
    "answer": ("answer", "final_answer", "target", "label", "solution"),
    "completion": ("completion", "response", "output"),
    "id": ("id", "uid", "idx", "index"),
}


class PromptMap(Frozen):
    """What the columns of a table, or the keys of JSON lines, hold. Columns that it does not name are left out."""

    prompt: Column | None = None
    """Column of the prompt; empty when `messages` is given."""
    messages: Column | None = None
    """Column of a conversation (a list of role and content): a system message perhaps, the user's, the assistant's perhaps."""
    answer: Column | None = None
    """Column of the right answer, which evaluation compares with."""
    completion: Column | None = None
    """Column of a whole text that answers the prompt."""
    id: Column | None = None
    """Column that tells the rows apart; no two may have the same."""

    @model_validator(mode="after")
    def _one_column_holds_the_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            found = "neither prompt nor messages is given" if self.prompt is None else "prompt and messages are given"
            raise misfit("prompt", f"{found}; name the column of one of them.")
        if self.messages is not None and self.completion is not None:
            told = (
                "messages and completion are given; the assistant's message is the completion, leave completion empty."
            )
            raise misfit("completion", told)
        return self

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are named, by what they hold."""
        named = {name: getattr(self, name) for name in PromptMap.model_fields}
        return {name: column for name, column in named.items() if column is not None}


def guessed_map(columns: Sequence[str]) -> dict[str, str]:
    """What the columns are likely to hold, by the names that data sets use; without `prompt` and `messages` when none fits."""
    by_name = {column.strip().lower(): column for column in reversed(columns)}
    found = {
        what: by_name[name]
        for what, names in _USUAL.items()
        if (name := next((one for one in names if one in by_name), None)) is not None
    }
    if "messages" in found:
        return {what: column for what, column in found.items() if what not in ("prompt", "completion")}
    return found
