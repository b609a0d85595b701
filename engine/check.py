"""Preflight: open models and data of a spec, find what would fail, run one batch. Nothing is trained or kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from engine.errors import RunError
from engine.findings import Finding
from engine.frozen import Frozen
from engine.language_model import LanguageModel, load_language_model
from engine.objective_check import check_objective
from engine.rollout import RolloutRequest
from engine.sampler import Sampler
from engine.setup import (
    RunData,
    choose_device,
    choose_precision,
    fit_lengths,
    load_data,
    load_student,
    pair_findings,
    student_tokenizer,
)
from engine.spec import RunSpec

T = TypeVar("T")

_TRIAL_TOKENS = 4  # enough for a prefill, a decode step and the head


class CheckResult(Frozen):
    """What a preflight found."""

    findings: list[Finding]
    facts: dict[str, int | float | str | None]


def check(spec: RunSpec) -> CheckResult:
    """All problems that can be found without training, each at its field; facts about what was opened."""
    findings: list[Finding] = []
    facts: dict[str, int | float | str | None] = {}

    def attempt(work: Callable[[], T]) -> T | None:
        try:
            return work()
        except RunError as error:
            findings.extend(error.findings or [Finding(field="", message=error.message)])
            return None

    device = attempt(lambda: choose_device(spec))
    if device is None:
        return CheckResult(findings=findings, facts=facts)
    precision = choose_precision(spec, device)
    facts |= {"device": str(device), "precision": precision}
    tokenizer = attempt(lambda: student_tokenizer(spec))
    data = attempt(lambda: load_data(spec, tokenizer)) if tokenizer is not None else None
    student = attempt(lambda: load_student(spec, device, precision)) if tokenizer is not None else None
    teacher = attempt(lambda: load_language_model(spec.teacher, "teacher", device, precision))
    if data is not None:
        facts |= {"train_prompts": len(data.train), "longest_prompt_tokens": data.longest_prompt}
        facts["mean_prompt_tokens"] = sum(len(p.token_ids) for p in data.train) / len(data.train)
    for name, model in (("student", student), ("teacher", teacher)):
        if model is not None:
            facts |= {f"{name}_parameters": model.num_parameters, f"{name}_context_tokens": model.context_tokens}
    if student is not None and teacher is not None:
        findings.extend(pair_findings(student, teacher))
        attempt(lambda: check_objective(spec, student, teacher))
        if data is not None:
            fitting = attempt(lambda: fit_lengths(spec, data, student, teacher))
            if fitting is not None:
                facts |= {f"overlong {name}": overlong.in_words for name, overlong in fitting.overlong.items()}
            if fitting is not None and not any(finding.severity == "error" for finding in findings):
                attempt(lambda: _try_one_batch(student, fitting))
    return CheckResult(findings=findings, facts=facts)


def _try_one_batch(student: LanguageModel, data: RunData) -> None:
    longest = max(range(len(data.train)), key=lambda index: len(data.train[index].token_ids))
    request = RolloutRequest(longest, data.train[longest].token_ids, 1, 0)
    rollouts = Sampler(student, seed=0, temperature=1.0).sample([request], _TRIAL_TOKENS)
    assert rollouts[0].completion_token_ids, "a rollout has at least one token"
