"""From a spec to loaded models and encoded prompts, checked: the first phase of a run, and the whole of a preflight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from engine.adapter import base_of, with_adapter
from engine.adapter_spec import Lora
from engine.errors import RunError
from engine.evaluate import EncodedPrompt
from engine.findings import Finding
from engine.language_model import LanguageModel, load_language_model, load_tokenizer
from engine.prompts import PromptRow, read_prompts
from engine.spec import RunSpec

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class RunData:
    """The prompts of a run, encoded with the student's tokenizer."""

    train: list[EncodedPrompt]
    dev: list[EncodedPrompt]
    report: list[EncodedPrompt]

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt of all files."""
        return max(len(prompt.token_ids) for prompt in [*self.train, *self.dev, *self.report])


def choose_device(spec: RunSpec) -> torch.device:
    """The device of a run; RunError("bad_spec") when it asks for a GPU that is not there."""
    if spec.device == "cuda" and not torch.cuda.is_available():
        message = "device is 'cuda' but this machine has no usable GPU; set device to auto or cpu."
        raise RunError("bad_spec", message, [Finding(field="device", message=message)])
    cuda = spec.device == "cuda" or (spec.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")


def choose_precision(spec: RunSpec, device: torch.device) -> Precision:
    """The arithmetic of a run: what the spec says, or bfloat16 on a GPU that has it and float32 elsewhere."""
    if spec.precision != "auto":
        return spec.precision
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def load_data(spec: RunSpec, tokenizer: PreTrainedTokenizerBase) -> RunData:
    """Read and encode all prompt files; RunError("bad_data") with a finding at the field of the file."""
    evaluation = spec.evaluation
    dev = read_prompts(evaluation.path, "evaluation.path", limit=evaluation.num_prompts, need_answer=True)
    report: list[PromptRow] = []
    if evaluation.report_path is not None:
        report = read_prompts(
            evaluation.report_path, "evaluation.report_path", limit=evaluation.num_report_prompts, need_answer=True
        )
    need_completion = spec.completions.reads_prompt_file or spec.warmup_phase.reads_prompt_file
    train = read_prompts(spec.prompts.path, "prompts.path", need_completion=need_completion)
    return RunData(
        train=_encoded(spec, tokenizer, train, "prompts.path"),
        dev=_encoded(spec, tokenizer, dev, "evaluation.path"),
        report=_encoded(spec, tokenizer, report, "evaluation.report_path"),
    )


def load_models(spec: RunSpec, device: torch.device, precision: Precision) -> tuple[LanguageModel, LanguageModel]:
    """Student and teacher, checked against each other; RunError("bad_model") with a finding at the field."""
    student = load_student(spec, device, precision)
    teacher = _load_teacher(spec, student, device, precision)
    errors = [finding for finding in pair_findings(student, teacher) if finding.severity == "error"]
    if errors:
        raise RunError("bad_model", errors[0].message, errors)
    # Within one family, heads are padded to different sizes; a sampled padding row would be no token of the other model.
    shared = min(student.head.vocabulary, teacher.head.vocabulary)
    return student.limited_to(shared), teacher.limited_to(shared)


def load_student(spec: RunSpec, device: torch.device, precision: Precision) -> LanguageModel:
    """The student, with a fresh adapter where one is trained; RunError("bad_model") with a finding at the field."""
    if not isinstance(spec.adapter, Lora):
        return load_language_model(spec.student, "student", device, precision)
    base = load_language_model(spec.student, "student", device, precision, is_frozen=True)
    return with_adapter(base, spec.adapter, spec.student, spec.seed)


def _load_teacher(spec: RunSpec, student: LanguageModel, device: torch.device, precision: Precision) -> LanguageModel:
    """The teacher; where it is the frozen base of the student's adapter, that base itself: the weights lie in memory once."""
    if student.adapter is not None and spec.teacher == spec.student:
        return base_of(student)
    teacher = load_language_model(spec.teacher, "teacher", device, precision)
    teacher.module.requires_grad_(False)
    return teacher


def pair_findings(student: LanguageModel, teacher: LanguageModel) -> list[Finding]:
    """What does not fit between two models: vocabularies (error), end-of-text ids (warning)."""
    findings = []
    mine, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    different = sum(theirs.get(token) != token_id for token, token_id in mine.items()) + len(
        theirs.keys() - mine.keys()
    )
    if different:
        message = (
            f"student and teacher have different vocabularies ({different} of {max(len(mine), len(theirs))} tokens differ); "
            "choose a teacher with the student's tokenizer."
        )
        findings.append(Finding(field="teacher.path", message=message))
    if student.eos_token_ids != teacher.eos_token_ids:
        message = (
            f"the student ends its texts with token ids {sorted(student.eos_token_ids)}, the teacher with "
            f"{sorted(teacher.eos_token_ids)}; lengths may drift apart, align eos_token_id in their generation_config.json."
        )
        findings.append(Finding(field="teacher.path", message=message, severity="warning"))
    return findings


def check_lengths(spec: RunSpec, data: RunData, student: LanguageModel, teacher: LanguageModel) -> None:
    """RunError("bad_data") when prompt and full completion do not fit into the context of both models."""
    for field, model in (("student", student), ("teacher", teacher)):
        context = model.context_tokens
        if context is not None and data.longest_prompt + spec.max_completion_tokens > context:
            left = context - data.longest_prompt
            message = (
                f"max_completion_tokens is {spec.max_completion_tokens} but the {field}'s context of {context} tokens leaves "
                f"{max(left, 0)} after the longest prompt ({data.longest_prompt}); lower max_completion_tokens or shorten the prompts."
            )
            raise RunError("bad_data", message, [Finding(field="max_completion_tokens", message=message)])


def student_tokenizer(spec: RunSpec) -> PreTrainedTokenizerBase:
    """The tokenizer that encodes all prompts."""
    return load_tokenizer(spec.student, "student")


def _encoded(
    spec: RunSpec, tokenizer: PreTrainedTokenizerBase, rows: list[PromptRow], field: str
) -> list[EncodedPrompt]:
    if spec.prompts.template == "chat" and tokenizer.chat_template is None:
        message = "prompts.template is 'chat' but the student's tokenizer has no chat template; set it to plain."
        raise RunError("bad_data", message, [Finding(field="prompts.template", message=message)])
    if not rows:
        return []
    try:
        token_ids = _token_ids(spec, tokenizer, rows)
    except Exception as error:  # whatever a tokenizer or a chat template raises, it is about a line
        raise _bad_line(spec, tokenizer, rows, field) or error from error
    empty = [number for number, ids in enumerate(token_ids, start=1) if not ids]
    if empty:
        raise _bad_prompt(field, empty[0], "has a prompt without any token")
    return [EncodedPrompt(row, ids) for row, ids in zip(rows, token_ids, strict=True)]


def _token_ids(spec: RunSpec, tokenizer: PreTrainedTokenizerBase, rows: list[PromptRow]) -> list[list[int]]:
    if spec.prompts.template == "plain":
        return [list(ids) for ids in tokenizer([row.prompt for row in rows])["input_ids"]]
    # transformers renders templates in jinja2's immutable sandbox.
    talks = [[{"role": "user", "content": row.prompt}] for row in rows]
    return [
        list(tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=False))
        for talk in talks
    ]


def _bad_line(spec: RunSpec, tokenizer: PreTrainedTokenizerBase, rows: list[PromptRow], field: str) -> RunError | None:
    """The first line that cannot be encoded alone."""
    for number, row in enumerate(rows, start=1):
        try:
            _token_ids(spec, tokenizer, [row])
        except Exception as error:
            return _bad_prompt(field, number, f"has a prompt that the student's tokenizer cannot encode ({error})")
    return None


def _bad_prompt(field: str, number: int, problem: str) -> RunError:
    message = f"{field}: line {number} {problem}; correct or remove it."
    return RunError("bad_data", message, [Finding(field=field, message=message)])
