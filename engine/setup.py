"""From a spec to loaded models and encoded prompts, checked: the first phase of a run, and the whole of a preflight."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from engine.adapter import base_of, with_adapter
from engine.adapter_spec import Lora
from engine.encode import Overlong, check_completions, encoded, fitted
from engine.errors import RunError
from engine.evaluate import EncodedPrompt
from engine.findings import Finding
from engine.language_model import LanguageModel, describe_language_model, load_language_model, load_tokenizer
from engine.model_files import hidden_width
from engine.objective_check import check_objective
from engine.pairing import pair_findings, shared_vocabulary
from engine.prompt_spec import PromptColumns
from engine.prompts import pinned, read_prompts
from engine.spec import RunSpec
from engine.teacher_backend_spec import VllmTeacher
from engine.teacher_servers import TeacherServers

Precision = Literal["float32", "bfloat16"]

CPU = torch.device("cpu")
MIN_BFLOAT16_WIDTH = 512
"""Hidden width of the student from which `precision: auto` is bfloat16 on a CPU that gains from it."""
_BFLOAT16_GAIN = 1.5
"""So many times as fast as in float32 a product must be: a step also casts, and its norms and softmaxes gain nothing."""
_PRODUCTS = 5


@dataclass(frozen=True)
class RunData:
    """The prompts of a run, encoded with the student's tokenizer."""

    train: list[EncodedPrompt]
    dev: list[EncodedPrompt]
    report: list[EncodedPrompt]
    sources: dict[str, str] = field(default_factory=dict)
    """By the field of the spec, the reference that was read; of a data set of the hub with its commit."""
    overlong: dict[str, Overlong] = field(default_factory=dict)
    """By the field of the spec, what was done with prompts that were too long."""

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt of all files."""
        return max(len(prompt.token_ids) for prompts in self.by_field().values() for prompt in prompts)

    def by_field(self) -> dict[str, list[EncodedPrompt]]:
        """The prompts by the field of the spec that they come from."""
        return {"prompts.path": self.train, "evaluation.path": self.dev, "evaluation.report_path": self.report}


def choose_device(spec: RunSpec, index: int | None = None) -> torch.device:
    """The device of a run, the GPU of that index; RunError("bad_spec") when it asks for a GPU that is not there."""
    if spec.device == "cuda" and not torch.cuda.is_available():
        message = "device is 'cuda' but this machine has no usable GPU; set device to auto or cpu."
        raise RunError("bad_spec", message, [Finding(field="device", message=message)])
    cuda = spec.device == "cuda" or (spec.device == "auto" and torch.cuda.is_available())
    return CPU if not cuda else torch.device("cuda") if index is None else torch.device("cuda", index)


def choose_precision(spec: RunSpec, device: torch.device) -> Precision:
    """The arithmetic of a run: what the spec says, or bfloat16 where the device computes it faster, and float32 elsewhere.

    On a CPU that is one whose products gain from it, and a student of some width: a small one gains nothing and rounds.
    """
    if spec.precision != "auto":
        return spec.precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    is_wide = (hidden_width(spec.student) or 0) >= MIN_BFLOAT16_WIDTH
    return "bfloat16" if is_wide and gains_from_bfloat16() else "float32"


@cache
def gains_from_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices so much faster than float32 ones that a step gains from it; measured once.

    Instructions alone do not say so: with AVX512_BF16 and no AMX the same step was seen to take 1.9 times as long.
    """
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return False
    best = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    pairs = {dtype: (torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)) for dtype in best}
    for _ in range(_PRODUCTS):
        for dtype, (left, right) in pairs.items():
            began = time.perf_counter()
            left @ right
            best[dtype] = min(best[dtype], time.perf_counter() - began)
    return best[torch.float32] >= _BFLOAT16_GAIN * best[torch.bfloat16]


def load_data(spec: RunSpec, tokenizer: PreTrainedTokenizerBase) -> RunData:
    """Read and encode all prompts; RunError("bad_data") with a finding at the field of their reference."""
    evaluation = spec.evaluation
    asked: list[tuple[str, str, PromptColumns, int | None]] = [
        ("prompts.path", spec.prompts.path, spec.prompts, None),
        ("evaluation.path", evaluation.path, evaluation, evaluation.num_prompts),
    ]
    if evaluation.report_path is not None:
        asked.append(("evaluation.report_path", evaluation.report_path, evaluation, evaluation.num_report_prompts))
    found: dict[str, list[EncodedPrompt]] = {}
    sources: dict[str, str] = {}
    for name, reference, columns, limit in asked:
        sources[name] = pinned(reference, name)
        is_train = name == "prompts.path"
        rows = read_prompts(
            sources[name],
            name,
            columns=columns,
            limit=limit,
            need_answer=not is_train,
            need_completion=is_train and spec.reads_prompt_completions,
        )
        found[name] = encoded(spec, tokenizer, rows, name)
    for name, metric in spec.deciding_metrics.items():
        if metric == "exact" and all(one.row.completion is None for one in found["evaluation.path"]):
            message = (
                f"{name} is exact but none of the {len(found['evaluation.path'])} prompts of evaluation.path "
                "has a whole text to compare with; add completions or choose another metric."
            )
            raise RunError("bad_data", message, [Finding(field=name, message=message)])
    return RunData(
        train=found["prompts.path"],
        dev=found["evaluation.path"],
        report=found.get("evaluation.report_path", []),
        sources=sources,
    )


def load_models(spec: RunSpec, device: torch.device, precision: Precision) -> tuple[LanguageModel, LanguageModel]:
    """Student and teacher, checked against each other; RunError("bad_model") with a finding at the field."""
    student = load_student(spec, device, precision)
    teacher = load_teacher(spec, device, precision, student)
    errors = [finding for finding in pair_findings(student, teacher) if finding.severity == "error"]
    if errors:
        raise RunError("bad_model", errors[0].message, errors)
    check_objective(spec, student, teacher)
    # Within one family, heads are padded to different sizes; a sampled padding row would be no token of the other model.
    shared = shared_vocabulary(student, teacher)
    return student.limited_to(shared), teacher.limited_to(shared)


def load_student(
    spec: RunSpec, device: torch.device, precision: Precision, tokenizer: PreTrainedTokenizerBase | None = None
) -> LanguageModel:
    """The student, with a fresh adapter where one is trained; RunError("bad_model") with a finding at the field."""
    if not isinstance(spec.adapter, Lora):
        return load_language_model(spec.student, "student", device, precision, tokenizer=tokenizer)
    base = load_language_model(spec.student, "student", device, precision, is_frozen=True, tokenizer=tokenizer)
    return with_adapter(base, spec.adapter, spec.student, spec.seed)


def load_teacher(
    spec: RunSpec, device: torch.device, precision: Precision, student: LanguageModel | None = None
) -> LanguageModel:
    """The teacher; of one that is served, what its files say of it. RunError("bad_model") with a finding at the field.

    Where it is the frozen base of the adapter of `student`, it is that base itself: the weights lie in memory once.
    """
    if spec.has_served_teacher:
        return describe_language_model(spec.teacher, "teacher", device)
    if spec.shares_base and student is not None:
        return base_of(student)
    teacher = load_language_model(spec.teacher, "teacher", device, precision)
    teacher.module.requires_grad_(False)
    return teacher


def connected(spec: RunSpec, teacher: LanguageModel, data: RunData) -> LanguageModel:
    """The teacher with the servers that have its weights, where it is served; nobody has been asked yet.

    Raises RunError("bad_spec") for servers that may not be asked, or that leave prompts without a teacher.
    """
    if not isinstance(spec.teacher_backend, VllmTeacher):
        return teacher
    num_tokens = data.longest_prompt + spec.max_completion_tokens
    servers = TeacherServers(spec.teacher_backend, teacher.tokenizer, teacher.head.vocabulary, num_tokens)
    prompts = [prompt for of_field in data.by_field().values() for prompt in of_field]
    servers.routes.set_tags((one.token_ids, one.row.tag) for one in prompts)
    return replace(teacher, servers=servers)


def fit_lengths(spec: RunSpec, data: RunData, student: LanguageModel, teacher: LanguageModel) -> RunData:
    """The prompts that fit into the contexts of both models beside a full completion, and into max_prompt_tokens.

    Longer ones are refused, left out or cut as `prompts.overlong` says; what was done stands in `overlong`. Raises
    RunError("bad_data").
    """
    limits = [spec.prompts.max_prompt_tokens or None]
    if spec.prompts.overlong != "refuse":
        limits += [
            model.context_tokens - spec.max_completion_tokens for model in (student, teacher) if model.context_tokens
        ]
    limit = min((limit for limit in limits if limit is not None), default=None)
    # A completion that fills a context leaves nothing to cut to; the check below says so.
    data = data if limit is None or limit < 1 else _fitted(spec, data, student.tokenizer, limit)
    shared = shared_vocabulary(student, teacher)
    _check_tokens(data, shared)
    if spec.reads_prompt_completions:
        check_completions(spec, student.limited_to(shared), data.train, "prompts.path")
    for name, model in (("student", student), ("teacher", teacher)):
        context = model.context_tokens
        if context is not None and data.longest_prompt + spec.max_completion_tokens > context:
            left = context - data.longest_prompt
            message = (
                f"max_completion_tokens is {spec.max_completion_tokens} but the {name}'s context of {context} tokens leaves "
                f"{max(left, 0)} after the longest prompt ({data.longest_prompt}); lower max_completion_tokens or shorten the prompts."
            )
            raise RunError("bad_data", message, [Finding(field="max_completion_tokens", message=message)])
    return data


def _check_tokens(data: RunData, vocabulary: int) -> None:
    for name, prompts in data.by_field().items():
        for prompt in prompts:
            token_id = max(prompt.token_ids)
            if token_id >= vocabulary:
                message = (
                    f"{name}: {prompt.row.place} has a token of id {token_id} but student and teacher share only the first "
                    f"{vocabulary}; change the prompt or choose a teacher with the student's tokenizer."
                )
                raise RunError("bad_data", message, [Finding(field=name, message=message)])


def _fitted(spec: RunSpec, data: RunData, tokenizer: PreTrainedTokenizerBase, limit: int) -> RunData:
    kept: dict[str, list[EncodedPrompt]] = {}
    overlong: dict[str, Overlong] = {}
    for name, prompts in data.by_field().items():
        kept[name] = fitted(spec, tokenizer, prompts, name, limit)
        count = sum(len(prompt.token_ids) > limit for prompt in prompts)
        if count:
            overlong[name] = Overlong(count, len(prompts), limit, spec.prompts.overlong)
    return replace(
        data,
        train=kept["prompts.path"],
        dev=kept["evaluation.path"],
        report=kept["evaluation.report_path"],
        overlong=overlong,
    )


def student_tokenizer(spec: RunSpec) -> PreTrainedTokenizerBase:
    """The tokenizer that encodes all prompts."""
    return load_tokenizer(spec.student, "student")
