"""One model writes the first k tokens, the other goes on: whose start decides, and how far it can be trusted."""

from __future__ import annotations

from engine.analyses.setup import Subjects
from engine.analysis_spec import AnalysisRow, TeacherContinues, TeacherPrefix
from engine.estimators import wilson


def continuation(asked: TeacherPrefix | TeacherContinues, subjects: Subjects) -> tuple[list[AnalysisRow], list[str]]:
    """Accuracy by the number of tokens that the first writer contributes, and what it says.

    Both models decode greedily, as evaluation does; every length starts from the same texts of the first writer.
    """
    models = {"teacher": subjects.teacher, "student": subjects.student}
    first, second = ("teacher", "student") if isinstance(asked, TeacherPrefix) else ("student", "teacher")
    prompts = subjects.data.dev[: asked.num_prompts]
    limit = subjects.spec.max_completion_tokens
    lengths = sorted({min(length, limit) for length in asked.prefix_tokens})
    subjects.report(0.05, f"the {first} writes {len(prompts)} texts")
    texts = subjects.sample(models[first], prompts, [[] for _ in prompts], max(max(lengths), 1), 0.0)
    rows = []
    for number, length in enumerate(lengths):
        subjects.report(0.1 + 0.9 * number / len(lengths), f"the {second} goes on from {length} tokens")
        starts = [text.completion_token_ids[:length] for text in texts]
        done = subjects.sample(models[second], prompts, starts, limit, 0.0)
        right = sum(subjects.is_right(models[second], p, r) for p, r in zip(prompts, done, strict=True))
        low, high = wilson(right / len(prompts), len(prompts))
        ended = sum(r.finish_reason == "eos" for r in done) / len(done)
        tokens = sum(len(r.completion_token_ids) for r in done) / len(done)
        rows.append(
            AnalysisRow(
                start=length, end=length + 1, value=right / len(prompts), low=low, high=high, count=len(prompts),
                details={"eos_rate": ended, "mean_tokens": tokens},
            )
        )  # fmt: skip
    return rows, _sentences(rows, first, second)


def _sentences(rows: list[AnalysisRow], first: str, second: str) -> list[str]:
    base, best, worst = rows[0], max(rows, key=lambda row: row.value), min(rows, key=lambda row: row.value)
    said = []
    for row in [base] if best is base else [base, best]:
        where = f"Behind {row.start} tokens of the {first}" if row.start else "Alone"
        said.append(f"{where}, the {second} is right in {row.value:.3f} [{row.low:.3f}, {row.high:.3f}].")
    if best is not base and best.low > base.high:
        enough = next(row for row in rows if row.value >= base.value + 0.9 * (best.value - base.value))
        said.append(f"{enough.start} tokens give at least 90 % of that gain: what the {first} decides lies early.")
    if worst.high < base.low:
        said.append(
            f"The {first}'s first {worst.start} tokens lead the {second} astray: {worst.value:.3f} [{worst.low:.3f}, {worst.high:.3f}]."
        )
    if best.low <= base.high and worst.high >= base.low:
        said.append("The intervals of all lengths overlap: ask more prompts before you conclude.")
    return said
