"""Whether the objective of a spec fits its models: what cannot be known before they are open."""

from __future__ import annotations

from engine.errors import RunError
from engine.findings import Finding
from engine.language_model import LanguageModel
from engine.objective import shared_stop_ids
from engine.spec import RunSpec
from engine.topk_divergences import TeacherOrder, TopKKL


def check_objective(spec: RunSpec, student: LanguageModel, teacher: LanguageModel) -> None:
    """RunError("bad_spec") when the divergence asks for more tokens than the vocabulary that both models share has."""
    vocabulary = min(student.head.vocabulary, teacher.head.vocabulary)
    merged = max(len(shared_stop_ids(student, teacher)) - 1, 0) if spec.merge_stop_tokens else 0
    limit = vocabulary - merged
    if isinstance(spec.divergence, TopKKL | TeacherOrder) and spec.divergence.k > limit:
        less = f", {merged} less with their stop tokens merged" if merged else ""
        message = (
            f"divergence.k is {spec.divergence.k} but student and teacher share a vocabulary of {vocabulary} tokens{less}; "
            f"lower it to at most {limit}."
        )
        raise RunError("bad_spec", message, [Finding(field="divergence.k", message=message)])
