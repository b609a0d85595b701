"""Whether the top-k choices of a spec fit its models: what cannot be known before they are open."""

from __future__ import annotations

from collections.abc import Iterator

from engine.errors import RunError
from engine.findings import Finding
from engine.language_model import LanguageModel
from engine.objective import shared_stop_ids
from engine.selection_spec import ProbeSelection
from engine.spec import RunSpec
from engine.topk_divergences import TeacherOrder, TopKKL


def check_objective(spec: RunSpec, student: LanguageModel, teacher: LanguageModel) -> None:
    """RunError("bad_spec") when a field asks for more tokens than the vocabulary that both models share has."""
    vocabulary = min(student.head.vocabulary, teacher.head.vocabulary)
    merged = max(len(shared_stop_ids(student, teacher)) - 1, 0) if spec.merge_stop_tokens else 0
    findings = []
    for field, k, num_merged in _numbers_of_tokens(spec, merged):
        limit = vocabulary - num_merged
        if k > limit:
            less = f", {num_merged} less with their stop tokens merged" if num_merged else ""
            message = (
                f"{field} is {k} but student and teacher share a vocabulary of {vocabulary} tokens{less}; "
                f"lower it to at most {limit}."
            )
            findings.append(Finding(field=field, message=message))
    if findings:
        raise RunError("bad_spec", " ".join(finding.message for finding in findings), findings)


def _numbers_of_tokens(spec: RunSpec, merged: int) -> Iterator[tuple[str, int, int]]:
    """Field, number of tokens that it asks for, and how many outcomes merged stop tokens take from it."""
    if isinstance(spec.divergence, TopKKL | TeacherOrder):
        yield "divergence.k", spec.divergence.k, merged
    if isinstance(spec.selection, ProbeSelection):
        yield "selection.top_k", spec.selection.top_k, 0
    if spec.evaluation.samples_per_prompt:
        yield "evaluation.answer_sampling.top_k", spec.evaluation.answer_sampling.top_k, 0
