"""Prompts and given completions as token ids of the student, and what happens to prompts that are too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from engine.chat_template import TemplateFailed, chat_template, rendered_chats
from engine.errors import RunError
from engine.evaluate import EncodedPrompt
from engine.findings import Finding
from engine.language_model import LanguageModel
from engine.prompts import PromptRow
from engine.spec import RunSpec


def encoded(
    spec: RunSpec, tokenizer: PreTrainedTokenizerBase, rows: list[PromptRow], field: str
) -> list[EncodedPrompt]:
    """The rows with their token ids; RunError("bad_data") with a finding at the field that the rows were read from."""
    if spec.prompts.template == "chat" and chat_template(tokenizer) is None:
        message = "prompts.template is 'chat' but the student's tokenizer has no chat template; set it to plain."
        raise RunError("bad_data", message, [Finding(field="prompts.template", message=message)])
    if not rows:
        return []
    try:
        token_ids = token_ids_of(spec, tokenizer, [row.prompt for row in rows])
    except TemplateFailed as error:
        raise _bad_template(spec, rows[error.index], error) from None
    except Exception as error:  # whatever a tokenizer raises, it is about a row
        raise _bad_row(spec, tokenizer, rows, field) or error from error
    for row, ids in zip(rows, token_ids, strict=True):
        if not ids:
            raise _bad_prompt(field, row, "has a prompt without any token")
    return [EncodedPrompt(row, ids) for row, ids in zip(rows, token_ids, strict=True)]


def token_ids_of(spec: RunSpec, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """The token ids that the models see for these prompts, the chat template included; TemplateFailed when it fails."""
    if spec.prompts.template == "plain":
        return [list(ids) for ids in tokenizer(list(prompts))["input_ids"]]
    # The template writes special tokens itself.
    return _ids_of_chats(tokenizer, rendered_chats(tokenizer, spec.prompts, prompts), prompts)


def completion_ids(student: LanguageModel, text: str) -> list[int]:
    """A given completion up to its first end-of-text token, which is put behind it if it has none."""
    written = [*student.tokenizer(text, add_special_tokens=False)["input_ids"], _ending_id(student)]
    return written[: 1 + next(i for i, token_id in enumerate(written) if token_id in student.eos_token_ids)]


def _ending_id(student: LanguageModel) -> int:
    """The tokenizer's own end of text, unless the teacher lacks it: a pair shares one of the student's at least."""
    own = student.tokenizer.eos_token_id
    return own if isinstance(own, int) and own < student.head.vocabulary else min(student.eos_token_ids)


def check_completions(spec: RunSpec, student: LanguageModel, prompts: list[EncodedPrompt], field: str) -> None:
    """That both models know what is trained on of the completions beside these prompts; RunError("bad_data") with the row.

    The student is limited to what it shares with the teacher.
    """
    vocabulary = student.head.vocabulary
    for prompt in prompts:
        text = prompt.row.completion
        assert text is not None, "read_prompts refuses rows without a completion when a source needs them"
        try:
            ids = completion_ids(student, text)[: spec.max_completion_tokens]
        except Exception as error:  # whatever a tokenizer raises, it is about a row
            problem = f"has a completion that the student's tokenizer cannot encode ({error})"
            raise _bad_prompt(field, prompt.row, problem) from error
        if max(ids) >= vocabulary:
            message = (
                f"{field}: {prompt.row.place} has a completion with a token of id {max(ids)} but student and teacher share only "
                f"the first {vocabulary}; change the completion or choose a teacher with the student's tokenizer."
            )
            raise RunError("bad_data", message, [Finding(field=field, message=message)])


def _ids_of_chats(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered chats. What looks like a special token in a prompt is text: it must not end the user's turn."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    for i, prompt in enumerate(prompts):
        if any(token in prompt for token in special):
            found[i] = _ids_with_plain_prompt(tokenizer, texts[i], prompt.strip(), i)
    return found


def _ids_with_plain_prompt(tokenizer: PreTrainedTokenizerBase, text: str, prompt: str, index: int) -> list[int]:
    before, held, after = text.partition(prompt)
    if not held or prompt in after:
        raise TemplateFailed("it does not write a prompt with special tokens once and as it is", index)
    parts = ((before, False), (held, True), (after, False))
    ids: list[int] = []
    for part, is_plain in parts:
        ids += tokenizer([part], add_special_tokens=False, split_special_tokens=is_plain)["input_ids"][0]
    return ids


def _bad_template(spec: RunSpec, row: PromptRow, error: TemplateFailed) -> RunError:
    """At the system message where there is one, as many templates know no such role."""
    name = "template" if spec.prompts.system_message is None else "system_message"
    message = (
        f"prompts.{name} is {_shown(getattr(spec.prompts, name))} but the student's chat template fails on {row.place} ({error}); "
        f"{'set it to plain' if name == 'template' else 'leave it empty'} or correct the template."
    )
    return RunError("bad_data", message, [Finding(field=f"prompts.{name}", message=message)])


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _bad_row(spec: RunSpec, tokenizer: PreTrainedTokenizerBase, rows: list[PromptRow], field: str) -> RunError | None:
    """The first row that cannot be encoded alone."""
    prompts = [row.prompt for row in rows]
    is_chat = spec.prompts.template == "chat"
    texts = rendered_chats(tokenizer, spec.prompts, prompts) if is_chat else prompts
    for row, text in zip(rows, texts, strict=True):
        try:
            _ids_of_chats(tokenizer, [text], [row.prompt]) if is_chat else tokenizer(text)
        except Exception as error:
            return _bad_prompt(field, row, f"has a prompt that the student's tokenizer cannot encode ({error})")
    return None


def _bad_prompt(field: str, row: PromptRow, problem: str) -> RunError:
    message = f"{field}: {row.place} {problem}; correct or remove it."
    return RunError("bad_data", message, [Finding(field=field, message=message)])


@dataclass(frozen=True)
class Overlong:
    """What was done with the prompts of a file that were too long."""

    count: int
    total: int
    limit: int
    choice: Literal["refuse", "drop", "truncate_left"]

    @property
    def in_words(self) -> str:
        """Without the name of the file: `3 of 100 prompts are longer than 64 tokens and were left out.`"""
        did = "left out" if self.choice == "drop" else "cut off at the beginning"
        plural = self.count != 1
        return (
            f"{self.count} of {self.total} prompts {'are' if plural else 'is'} longer than {self.limit} tokens "
            f"and {'were' if plural else 'was'} {did}."
        )


def fitted(
    spec: RunSpec, tokenizer: PreTrainedTokenizerBase, prompts: list[EncodedPrompt], field: str, limit: int
) -> list[EncodedPrompt]:
    """The prompts by the spec's choice for those of more than `limit` tokens.

    Raises RunError("bad_data") when one is too long and the choice is to refuse, or when none is left.
    """
    overlong = [prompt for prompt in prompts if len(prompt.token_ids) > limit]
    if not overlong:
        return prompts
    if spec.prompts.overlong == "refuse":
        raise _refused(overlong, field, limit)
    if spec.prompts.overlong == "drop":
        kept = [prompt for prompt in prompts if len(prompt.token_ids) <= limit]
        if not kept:
            message = (
                f"{field}: all {len(prompts)} prompts are longer than the limit of {limit} tokens, so that none is left; "
                "raise prompts.max_prompt_tokens, lower max_completion_tokens or choose shorter prompts."
            )
            raise RunError("bad_data", message, [Finding(field=field, message=message)])
        return kept
    if spec.prompts.template == "chat":
        cut = iter(_cut_chats(spec, tokenizer, overlong, field, limit))
    else:
        cut = (_cut_ids(tokenizer, prompt, limit) for prompt in overlong)
    return [prompt if len(prompt.token_ids) <= limit else next(cut) for prompt in prompts]


def _refused(overlong: list[EncodedPrompt], field: str, limit: int) -> RunError:
    first = overlong[0]
    more = f" ({len(overlong)} of all prompts are too long)" if len(overlong) > 1 else ""
    message = (
        f"{field}: {first.row.place} has a prompt of {len(first.token_ids)} tokens, the limit is {limit}{more}; "
        "shorten it, raise prompts.max_prompt_tokens, or set prompts.overlong to drop or truncate_left."
    )
    return RunError("bad_data", message, [Finding(field="prompts.overlong", message=message)])


def _cut_ids(tokenizer: PreTrainedTokenizerBase, prompt: EncodedPrompt, limit: int) -> EncodedPrompt:
    """The end of a prompt; a leading BOS is kept, as models are lost without it."""
    ids = prompt.token_ids
    if ids[0] == tokenizer.bos_token_id and limit > 1:
        return EncodedPrompt(prompt.row, [ids[0], *ids[len(ids) - limit + 1 :]])
    return EncodedPrompt(prompt.row, ids[-limit:])


def _cut_chats(
    spec: RunSpec, tokenizer: PreTrainedTokenizerBase, prompts: list[EncodedPrompt], field: str, limit: int
) -> list[EncodedPrompt]:
    """The chats with the beginning of the user's text cut off, their frame whole."""
    words = [list(ids) for ids in tokenizer([p.row.prompt for p in prompts], add_special_tokens=False)["input_ids"]]
    token_ids = [prompt.token_ids for prompt in prompts]
    # Cutting may change how the rest is split into tokens, so that one round need not be enough.
    while too_long := [i for i, ids in enumerate(token_ids) if len(ids) > limit]:
        for i in too_long:
            excess = len(token_ids[i]) - limit
            if excess >= len(words[i]):
                problem = f"has a chat frame that leaves no room within the limit of {limit} tokens"
                raise _bad_prompt(field, prompts[i].row, problem)
            words[i] = words[i][excess:]
        shorter = token_ids_of(spec, tokenizer, [str(tokenizer.decode(words[i])) for i in too_long])
        for i, ids in zip(too_long, shorter, strict=True):
            token_ids[i] = ids
    return [EncodedPrompt(prompt.row, ids) for prompt, ids in zip(prompts, token_ids, strict=True)]
