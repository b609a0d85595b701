"""Prompts as token ids of the student, and what happens to those that are too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from engine.errors import RunError
from engine.evaluate import EncodedPrompt
from engine.findings import Finding
from engine.prompts import PromptRow
from engine.spec import RunSpec


def encoded(
    spec: RunSpec, tokenizer: PreTrainedTokenizerBase, rows: list[PromptRow], field: str
) -> list[EncodedPrompt]:
    """The rows with their token ids; RunError("bad_data") with a finding at the field that the rows were read from."""
    if spec.prompts.template == "chat" and tokenizer.chat_template is None:
        message = "prompts.template is 'chat' but the student's tokenizer has no chat template; set it to plain."
        raise RunError("bad_data", message, [Finding(field="prompts.template", message=message)])
    if not rows:
        return []
    try:
        token_ids = token_ids_of(spec, tokenizer, [row.prompt for row in rows])
    except Exception as error:  # whatever a tokenizer or a chat template raises, it is about a row
        raise _bad_row(spec, tokenizer, rows, field) or error from error
    for row, ids in zip(rows, token_ids, strict=True):
        if not ids:
            raise _bad_prompt(field, row, "has a prompt without any token")
    return [EncodedPrompt(row, ids) for row, ids in zip(rows, token_ids, strict=True)]


def token_ids_of(spec: RunSpec, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """The token ids that the models see for these prompts, the chat template included."""
    if spec.prompts.template == "plain":
        return [list(ids) for ids in tokenizer(list(prompts))["input_ids"]]
    # transformers renders templates in jinja2's immutable sandbox.
    talks = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [
        list(tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=False))
        for talk in talks
    ]


def _bad_row(spec: RunSpec, tokenizer: PreTrainedTokenizerBase, rows: list[PromptRow], field: str) -> RunError | None:
    """The first row that cannot be encoded alone."""
    for row in rows:
        try:
            token_ids_of(spec, tokenizer, [row.prompt])
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
    cut = _shortener(spec, tokenizer, field, limit)
    return [cut(prompt) if len(prompt.token_ids) > limit else prompt for prompt in prompts]


def _refused(overlong: list[EncodedPrompt], field: str, limit: int) -> RunError:
    first = overlong[0]
    more = f" ({len(overlong)} of all prompts are too long)" if len(overlong) > 1 else ""
    message = (
        f"{field}: {first.row.place} has a prompt of {len(first.token_ids)} tokens, the limit is {limit}{more}; "
        "shorten it, raise prompts.max_prompt_tokens, or set prompts.overlong to drop or truncate_left."
    )
    return RunError("bad_data", message, [Finding(field="prompts.overlong", message=message)])


def _shortener(
    spec: RunSpec, tokenizer: PreTrainedTokenizerBase, field: str, limit: int
) -> Callable[[EncodedPrompt], EncodedPrompt]:
    """Cuts the beginning of a prompt. A chat's frame and a leading BOS are kept, as models are lost without them."""

    def of_ids(prompt: EncodedPrompt) -> EncodedPrompt:
        ids = prompt.token_ids
        if ids[0] == tokenizer.bos_token_id and limit > 1:
            return EncodedPrompt(prompt.row, [ids[0], *ids[len(ids) - limit + 1 :]])
        return EncodedPrompt(prompt.row, ids[-limit:])

    def of_chat(prompt: EncodedPrompt) -> EncodedPrompt:
        words = tokenizer(prompt.row.prompt, add_special_tokens=False)["input_ids"]
        excess = len(prompt.token_ids) - limit
        while excess < len(words):
            words = words[excess:]
            ids = token_ids_of(spec, tokenizer, [str(tokenizer.decode(words))])[0]
            if len(ids) <= limit:
                return EncodedPrompt(prompt.row, ids)
            excess = len(ids) - limit
        raise _bad_prompt(
            field, prompt.row, f"has a chat frame that alone fills the limit of {limit} tokens; raise it, or else"
        )

    return of_chat if spec.prompts.template == "chat" else of_ids
