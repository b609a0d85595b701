"""Preflight: open models and data of a spec, find what would fail, try some updates. Nothing that is trained is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from engine.errors import RunError
from engine.findings import Finding
from engine.frozen import Frozen
from engine.language_model import LanguageModel
from engine.memory_plan import NO_OFFLOAD_ON_A_CPU
from engine.objective_check import check_objective
from engine.pairing import frame_findings, pair_findings, shared_vocabulary
from engine.prompt_preview import NUM_SHOWN, PromptPreview, prompt_previews
from engine.rollout_backend_spec import ColocatedVllm, VllmRollouts
from engine.server_pool import ServerPool
from engine.setup import (
    RunData,
    choose_device,
    choose_precision,
    connected,
    fit_lengths,
    load_data,
    load_student,
    load_teacher,
    student_tokenizer,
)
from engine.spec import RunSpec
from engine.teacher_offload import offloaded
from engine.trial import device_memory_bytes, trial
from engine.vllm_inside import vllm_findings

T = TypeVar("T")
Facts = dict[str, int | float | str | None]


class CheckResult(Frozen):
    """What a preflight found."""

    findings: list[Finding]
    facts: Facts
    previews: list[PromptPreview] = []
    """The first training prompts as both models see them."""


class _Found:
    """Findings and facts so far."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.facts: Facts = {}
        self.previews: list[PromptPreview] = []

    @property
    def is_sound(self) -> bool:
        return not any(finding.severity == "error" for finding in self.findings)

    def attempt(self, work: Callable[[], T]) -> T | None:
        """What the work gives; None when it fails, with its findings noted."""
        try:
            return work()
        except RunError as error:
            self.findings.extend(error.findings or [Finding(field="", message=error.message)])
            return None


def check(spec: RunSpec) -> CheckResult:
    """All problems that can be found without training, each at its field; facts about what was opened."""
    found = _Found()
    device = found.attempt(lambda: choose_device(spec))
    if device is None:
        return CheckResult(findings=found.findings, facts=found.facts)
    precision = choose_precision(spec, device)
    found.facts |= {
        "device": str(device), "device_memory_bytes": device_memory_bytes(device), "precision": precision,
    }  # fmt: skip
    tokenizer = found.attempt(lambda: student_tokenizer(spec))
    data = found.attempt(lambda: load_data(spec, tokenizer)) if tokenizer is not None else None
    student = None
    if tokenizer is not None:
        student = found.attempt(lambda: load_student(spec, device, precision, tokenizer))
    teacher = found.attempt(lambda: load_teacher(spec, device, precision))
    if spec.teacher_offload == "always" and device.type != "cuda":
        found.findings.append(Finding(field="teacher_offload", message=NO_OFFLOAD_ON_A_CPU, severity="warning"))
    elif spec.teacher_offload == "always" and teacher is not None:
        teacher = offloaded(teacher)
    if data is not None:
        _tell_of_data(data, found)
    for name, model in (("student", student), ("teacher", teacher)):
        if model is not None:
            found.facts |= {f"{name}_parameters": model.num_parameters, f"{name}_context_tokens": model.context_tokens}
    if student is not None and teacher is not None:
        _check_pair(spec, student, teacher, data, found)
    return CheckResult(findings=found.findings, facts=found.facts, previews=found.previews)


def _tell_of_data(data: RunData, found: _Found) -> None:
    found.facts |= {"train_prompts": len(data.train), "longest_prompt_tokens": data.longest_prompt}
    found.facts["mean_prompt_tokens"] = sum(len(p.token_ids) for p in data.train) / len(data.train)
    found.facts |= {f"read {name}": source for name, source in data.sources.items() if source.startswith("hf:")}


def _check_pair(
    spec: RunSpec, student: LanguageModel, teacher: LanguageModel, data: RunData | None, found: _Found
) -> None:
    """What shows only when both models are open, down to some updates when nothing stands in their way."""
    found.findings.extend(pair_findings(student, teacher))
    found.attempt(lambda: check_objective(spec, student, teacher))
    found.findings.extend(frame_findings(spec.prompts, student.tokenizer))
    if data is None:
        return
    rows = [prompt.row for prompt in data.train[:NUM_SHOWN]]
    found.previews, differing = prompt_previews(spec, student.tokenizer, teacher.tokenizer, rows)
    found.findings.extend(differing)
    fitting = found.attempt(lambda: fit_lengths(spec, data, student, teacher)) if found.is_sound else None
    if fitting is None or not found.is_sound:
        return
    if isinstance(spec.rollouts, VllmRollouts):
        servers, num_tokens = spec.rollouts, fitting.longest_prompt + spec.max_completion_tokens
        found.findings.extend(found.attempt(lambda: ServerPool(servers, num_tokens).look()) or [])
    if isinstance(spec.rollouts, ColocatedVllm):
        # Other workers may have it: the run waits for one that does.
        found.findings.extend(one.model_copy(update={"severity": "warning"}) for one in vllm_findings())
    found.facts |= {f"overlong {name}": overlong.in_words for name, overlong in fitting.overlong.items()}
    shared = shared_vocabulary(student, teacher)
    found.facts["shared_vocabulary"] = shared
    asked = found.attempt(lambda: _asked(spec, teacher.limited_to(shared), fitting, found))
    if asked is None:
        return
    tried = found.attempt(lambda: trial(spec, student.limited_to(shared), asked, fitting))
    if tried is not None:
        found.facts |= tried.facts
        found.findings.extend(tried.findings)


def _asked(spec: RunSpec, teacher: LanguageModel, data: RunData, found: _Found) -> LanguageModel | None:
    """The teacher as a run reads it; None when it is served and a server is in the way, which is noted."""
    teacher = connected(spec, teacher, data)
    if teacher.servers is not None:
        noted = teacher.servers.look()
        found.findings.extend(noted)
        if noted:
            return None
        teacher.servers.check(max((prompt.token_ids for prompt in data.train), key=len))
    return teacher
