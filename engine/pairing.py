"""What student and teacher share: token ids and ends of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from engine.chat_template import chat_template, knows_thinking
from engine.findings import Finding
from engine.prompt_spec import PromptSpec
from engine.vocabularies import differing_ids

if TYPE_CHECKING:
    from engine.language_model import LanguageModel

_MAX_NAMED = 3  # differing ids that a message names


def pair_findings(student: LanguageModel, teacher: LanguageModel) -> list[Finding]:
    """What does not fit between two models: vocabularies (error), end-of-text ids (error or warning)."""
    found = _different_ids(student, teacher)
    if found is not None:
        return [found, *_different_endings(student, teacher)]
    shared = shared_vocabulary(student, teacher)
    lost = sorted(token_id for token_id in student.eos_token_ids if token_id >= shared)
    if len(lost) == len(student.eos_token_ids):
        message = (
            f"the student ends its texts with token ids {lost} but shares only the first {shared} with the teacher, so that it "
            "could never end one; choose a teacher that has them."
        )
        return [Finding(field="teacher.path", message=message)]
    return _different_endings(student, teacher)


def shared_vocabulary(student: LanguageModel, teacher: LanguageModel) -> int:
    """How many ids, from 0 on, mean the same to both models; heads are padded, and one tokenizer may have more tokens."""
    heads = min(student.head.vocabulary, teacher.head.vocabulary)
    mine, theirs = vocabulary_of(student.tokenizer), vocabulary_of(teacher.tokenizer)
    if mine.keys() == theirs.keys():
        return heads
    return min(heads, min(mine.keys() ^ theirs.keys()))


def _different_ids(student: LanguageModel, teacher: LanguageModel) -> Finding | None:
    mine, theirs = vocabulary_of(student.tokenizer), vocabulary_of(teacher.tokenizer)
    different = differing_ids(mine, theirs)
    if not different:
        return None
    named = ", ".join(f"{i} is {_token(mine, i)} and {_token(theirs, i)}" for i in different[:_MAX_NAMED])
    message = (
        f"student and teacher have different vocabularies ({len(different)} of {len(mine.keys() | theirs.keys())} ids differ: "
        f"{named}{', …' if len(different) > _MAX_NAMED else ''}); choose a teacher with the student's tokenizer."
    )
    return Finding(field="teacher.path", message=message)


def _different_endings(student: LanguageModel, teacher: LanguageModel) -> list[Finding]:
    if student.eos_token_ids == teacher.eos_token_ids:
        return []
    message = (
        f"the student ends its texts with token ids {sorted(student.eos_token_ids)}, the teacher with "
        f"{sorted(teacher.eos_token_ids)}; lengths may drift apart, align eos_token_id in their generation_config.json."
    )
    return [Finding(field="teacher.path", message=message, severity="warning")]


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Ids with their tokens."""
    return {token_id: token for token, token_id in tokenizer.get_vocab().items()}


def _token(tokens: dict[int, str], token_id: int) -> str:
    return repr(tokens[token_id][:20]) if token_id in tokens else "nothing"


def frame_findings(spec: PromptSpec, tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    """Warnings when the student's chat template is left unused, or is told about thinking and does not listen."""
    if spec.template == "plain" and chat_template(tokenizer) is not None:
        message = (
            "prompts.template is 'plain' but the student has a chat template: a model that was trained on chats would see raw text; "
            "set it to chat, or leave it for a base model."
        )
        return [Finding(field="prompts.template", message=message, severity="warning")]
    if spec.enable_thinking is None or knows_thinking(tokenizer):
        return []
    message = (
        f"prompts.enable_thinking is {str(spec.enable_thinking).lower()} but the student's chat template does not look at it, "
        "so that it changes nothing; leave it empty."
    )
    return [Finding(field="prompts.enable_thinking", message=message, severity="warning")]
