"""The first prompts as both models see them, token by token, so that a person sees where their templates differ."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from engine.chat_template import TemplateFailed, chat_template
from engine.encode import token_ids_of
from engine.findings import Finding
from engine.frozen import Frozen
from engine.prompts import PromptRow
from engine.spec import RunSpec
from engine.trace import token_text

NUM_SHOWN = 3
_MAX_TOKENS = 400


class PromptPreview(Frozen):
    """One prompt, in the template of its run where that has one."""

    place: str
    """Where the prompt was read."""
    student: list[str]
    """Its tokens under the student's tokenizer and template, which both models are given; the first 400."""
    teacher: list[str]
    """The same under the teacher's own; empty when the teacher cannot render it."""
    problem: str = ""
    """Why it cannot."""


def prompt_previews(
    spec: RunSpec, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, rows: Sequence[PromptRow]
) -> tuple[list[PromptPreview], list[Finding]]:
    """The first rows under both models, and a warning when their frames differ.

    The student's frame is the one that is used: the teacher scores the student's own tokens.
    """
    shown = rows[:NUM_SHOWN]
    mine, _ = _tokens(spec, student, shown)
    theirs, problem = _tokens(spec, teacher, shown)
    previews = [
        PromptPreview(place=row.place, student=ours, teacher=other, problem=problem)
        for row, ours, other in zip(shown, mine, theirs, strict=True)
    ]
    differ = any(one.student != one.teacher for one in previews) and not problem
    if spec.prompts.template == "plain" or not differ:
        return previews, []
    message = (
        "prompts.template is 'chat' and the teacher's chat template differs from the student's, whose frame both models see; "
        "compare the two in the preview of this check."
    )
    return previews, [Finding(field="prompts.template", message=message, severity="warning")]


def _tokens(
    spec: RunSpec, tokenizer: PreTrainedTokenizerBase, rows: Sequence[PromptRow]
) -> tuple[list[list[str]], str]:
    """The tokens of each row, or none and why."""
    if spec.prompts.template == "chat" and chat_template(tokenizer) is None:
        return [[] for _ in rows], "its tokenizer has no chat template"
    try:
        ids = token_ids_of(spec, tokenizer, [row.prompt for row in rows])
    except TemplateFailed as error:
        return [[] for _ in rows], f"its template fails: {error}"
    except Exception as error:  # whatever a tokenizer raises; the teacher only scores what the student's has made
        return [[] for _ in rows], f"its tokenizer cannot encode them: {' '.join(str(error).split())[:200]}"
    return [[token_text(tokenizer, one) for one in of_row[:_MAX_TOKENS]] for of_row in ids], ""
