"""Prompts as chats, in the frame that a model's own template writes; see engine/render_chats.py for what it is allowed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from engine.prompt_spec import PromptSpec

_MAX_TEMPLATE_BYTES = 262_144  # the longest in use have some 30,000
_SECONDS = 20  # of one core, for a handful of chats; importing what renders them takes one or two
_CHATS_PER_SECOND = 500  # thirty times fewer than usual templates manage
_PATIENCE = 6  # how often slower than one core of its own the process may be, on a busy machine


class TemplateFailed(ValueError):
    """A template cannot render a chat; the text says why."""

    def __init__(self, reason: str, index: int = 0) -> None:
        super().__init__(reason)
        self.index = index
        """Which of the prompts it was."""


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template that a tokenizer uses for chats; None when it has none."""
    try:
        template = tokenizer.get_chat_template()
    except ValueError:  # none, or several without a default
        return None
    return template if isinstance(template, str) else None


def knows_thinking(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's template looks at `enable_thinking`."""
    return re.search(r"\benable_thinking\b", chat_template(tokenizer) or "") is not None


def rendered_chats(tokenizer: PreTrainedTokenizerBase, spec: PromptSpec, prompts: Sequence[str]) -> list[str]:
    """Each prompt as a user message in the template's frame, behind the system message, up to where the answer begins.

    Raises TemplateFailed.
    """
    template = chat_template(tokenizer)
    if template is None:
        raise TemplateFailed("there is none")
    if len(template.encode("utf-8", "replace")) > _MAX_TEMPLATE_BYTES:
        raise TemplateFailed(f"it is larger than {_MAX_TEMPLATE_BYTES} bytes")
    system = [] if spec.system_message is None else [{"role": "system", "content": spec.system_message}]
    variables = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    thinking = (
        {}
        if spec.enable_thinking is None or not knows_thinking(tokenizer)
        else {"enable_thinking": spec.enable_thinking}
    )
    seconds = _SECONDS + len(prompts) // _CHATS_PER_SECOND
    request = {
        "template": template,
        "talks": [[*system, {"role": "user", "content": prompt}] for prompt in prompts],
        "variables": variables | thinking,
        "seconds": seconds,
    }
    reply = _reply(json.dumps(request).encode(), seconds)
    if "texts" not in reply:
        raise TemplateFailed(str(reply["error"]), int(str(reply["index"])))
    texts = reply["texts"]
    assert isinstance(texts, list)
    return texts


def _reply(request: bytes, seconds: int) -> dict[str, object]:
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-W", "ignore", "-m", "engine.render_chats"],
            input=request,
            capture_output=True,
            timeout=seconds * _PATIENCE,
            # Without our environment: a template has no business with it. The loaders of numpy and torch need no more.
            env={"PATH": os.environ.get("PATH", ""), "OMP_NUM_THREADS": "1"},
        )
        reply = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise TemplateFailed(f"it takes longer than {seconds * _PATIENCE} s") from None
    except ValueError:
        # Killed by a limit, or out of memory: nothing else ends the process without a reply.
        raise TemplateFailed(f"it needs more than {seconds} s or more memory than it may have") from None
    assert isinstance(reply, dict)
    return reply
