"""Runs an analysis: opens what it needs, measures, says what the figures say."""

from __future__ import annotations

import time

from engine.analyses.continuation import continuation
from engine.analyses.divergence_by_position import divergence_by_position
from engine.analyses.gradient_by_position import gradient_by_position
from engine.analyses.setup import Report, open_subjects
from engine.analysis_spec import (
    AnalysisResult,
    AnalysisSpec,
    DivergenceByPosition,
    GradientByPosition,
    TeacherContinues,
    TeacherPrefix,
)

_POSITION = "completion position"


def analyze(asked: AnalysisSpec, report: Report) -> AnalysisResult:
    """The result; RunError with findings when models or data do not fit. `report` hears of the progress."""
    began = time.monotonic()
    subjects = open_subjects(asked, report)
    match asked.analysis:
        case DivergenceByPosition() as question:
            axis, measure, interval = _POSITION, "reverse KL, nats per token", "95 % over texts"
            rows, sentences = divergence_by_position(question, subjects)
            available = len(subjects.data.dev)
        case TeacherPrefix() | TeacherContinues() as question:
            first = "teacher" if isinstance(question, TeacherPrefix) else "student"
            axis, measure, interval = f"{first} tokens at the start", "accuracy", "95 % over prompts (Wilson)"
            rows, sentences = continuation(question, subjects)
            available = len(subjects.data.dev)
        case GradientByPosition() as question:
            axis, measure, interval = _POSITION, "gradient norm of the mean loss", "range over two halves of the texts"
            rows, sentences = gradient_by_position(question, subjects)
            available = len(subjects.data.train)
    report(1.0, "done")
    return AnalysisResult(
        kind=question.kind,
        axis=axis,
        measure=measure,
        interval=interval,
        rows=rows,
        sentences=[*sentences, *subjects.served_teacher_note],
        num_prompts=min(question.num_prompts, available),
        seconds=time.monotonic() - began,
    )
