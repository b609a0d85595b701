"""Conversations of data sets as one prompt and one completion."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_ORDERS = (("user",), ("user", "assistant"), ("system", "user"), ("system", "user", "assistant"))


@dataclass(frozen=True)
class Conversation:
    """What one question and its answer were."""

    prompt: str
    system: str | None = None
    completion: str | None = None


def parsed_conversation(value: object) -> Conversation:
    """The conversation in a cell: a list of {role, content} (or {from, value}), or such a list as JSON text.

    Raises ValueError with the second half of a sentence.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("is text that is not JSON; write a list of messages with role and content") from None
    if not isinstance(value, list) or not value:
        raise ValueError("is no list of messages; write a list of messages with role and content")
    messages = [_message(one, number) for number, one in enumerate(value, 1)]
    roles = tuple(role for role, _ in messages)
    if roles not in _ORDERS:
        shown = ", ".join(roles[:8]) + (", …" if len(roles) > 8 else "")
        raise ValueError(
            f"holds messages of {shown}; a prompt is one message of the user, perhaps behind one of the system and before "
            "one of the assistant"
        )
    texts = dict(messages)
    return Conversation(texts["user"], texts.get("system"), texts.get("assistant"))


def _message(value: object, number: int) -> tuple[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError(f"has a message {number} that is no object; write role and content")
    role, content = value.get("role", value.get("from")), value.get("content", value.get("value"))
    if not isinstance(role, str) or role not in _ROLES:
        raise ValueError(f"has a message {number} with the role {str(role)[:40]!r}; use system, user or assistant")
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"has a message {number} without text; fill in its content")
    return _ROLES[role], content
