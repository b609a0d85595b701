"""One model writes the first k tokens, the other goes on: whose start decides, and how far it can be trusted."""

from __future__ import annotations

from engine.analyses.setup import Subjects
from engine.analysis_spec import AnalysisRow, TeacherContinues, TeacherPrefix
from engine.estimators import mcnemar, wilson


def continuation(asked: TeacherPrefix | TeacherContinues, subjects: Subjects) -> tuple[list[AnalysisRow], list[str]]:
    """Accuracy by the number of tokens that the first writer contributes, and what it says.

    Both models decode greedily, as evaluation does; every length starts from the same texts of the first writer. Each length is
    held against the first one prompt by prompt: `p_value` is McNemar's.
    """
    models = {"teacher": subjects.teacher, "student": subjects.student}
    first, second = ("teacher", "student") if isinstance(asked, TeacherPrefix) else ("student", "teacher")
    prompts = subjects.data.dev[: asked.num_prompts]
    limit = subjects.spec.max_completion_tokens
    lengths = sorted({min(length, limit) for length in asked.prefix_tokens})
    subjects.report(0.05, f"the {first} writes {len(prompts)} texts")
    texts = subjects.sample(models[first], prompts, [[] for _ in prompts], max(max(lengths), 1), 0.0)
    rows: list[AnalysisRow] = []
    base: list[bool] = []
    for number, length in enumerate(lengths):
        subjects.report(0.1 + 0.9 * number / len(lengths), f"the {second} goes on from {length} tokens")
        starts = [text.completion_token_ids[:length] for text in texts]
        done = subjects.sample(models[second], prompts, starts, limit, 0.0)
        is_right = [subjects.is_right(models[second], p, r) for p, r in zip(prompts, done, strict=True)]
        base = base or is_right
        share = sum(is_right) / len(prompts)
        low, high = wilson(share, len(prompts))
        ended = sum(r.finish_reason == "eos" for r in done) / len(done)
        tokens = sum(len(r.completion_token_ids) for r in done) / len(done)
        rows.append(
            AnalysisRow(
                start=length, end=length + 1, value=share, low=low, high=high, count=len(prompts),
                details={"eos_rate": ended, "mean_tokens": tokens, "p_value": mcnemar(is_right, base)},
            )
        )  # fmt: skip
    return rows, _sentences(rows, first, second)


def _sentences(rows: list[AnalysisRow], first: str, second: str) -> list[str]:
    base, best, worst = rows[0], max(rows, key=lambda row: row.value), min(rows, key=lambda row: row.value)
    said = []
    for row in [base] if best is base else [base, best]:
        where = f"Behind {row.start} tokens of the {first}" if row.start else "Alone"
        said.append(f"{where}, the {second} is right in {row.value:.3f} [{row.low:.3f}, {row.high:.3f}].")
    # The first row is held against nothing: its p_value is that of a length against itself.
    differing = [row for row in rows[1:] if _differs(row, len(rows) - 1)]
    if best in differing:
        enough = next(row for row in rows if row.value >= base.value + 0.9 * (best.value - base.value))
        said.append(f"{enough.start} tokens give at least 90 % of that gain{_early(enough, rows, first)}.")
    astray = next((row for row in differing if row.value < base.value), None)
    if astray is not None:
        lowest = "" if worst is astray else f", and at the lowest {worst.value:.3f} behind {worst.start}"
        said.append(
            f"The {first}'s first {astray.start} tokens lead the {second} astray: {astray.value:.3f} "
            f"[{astray.low:.3f}, {astray.high:.3f}]{lowest}."
        )
    if len(rows) > 1 and not differing:
        said.append(
            f"Prompt by prompt no length differs from {base.start} tokens (McNemar, 5 % over all lengths): ask more prompts "
            "before you conclude."
        )
    return said


def _differs(row: AnalysisRow, num_compared: int) -> bool:
    """From the first length, at 5 % over all lengths together (Bonferroni)."""
    p_value = row.details["p_value"]
    return p_value is not None and p_value * num_compared < 0.05


def _early(enough: AnalysisRow, rows: list[AnalysisRow], first: str) -> str:
    """The conclusion, where half of the lengths that were asked, or fewer, are enough."""
    return f": what the {first} decides lies early" if rows.index(enough) <= len(rows) // 2 else ""
