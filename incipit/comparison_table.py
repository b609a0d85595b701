"""The comparison of an experiment as a table for the terminal, with the sentences that its figures support."""

from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backend.arms import Arm
from backend.comparison import Comparison, si


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print the figures, in one table or on a narrow terminal in two, and what they say; no result is fixed text."""
    counts = sorted({arm.num_prompts for arm in comparison.arms})
    title = f"Best checkpoint of each arm on {', '.join(map(str, counts))} full-length problems"
    if console.width >= _WIDE:
        console.print(_table(title, comparison.arms, {**_LEARNT, **_COST}))
    else:
        console.print(_table(title, comparison.arms, _LEARNT))
        console.print(_table("What it cost (FLOPs by phase, seconds of training)", comparison.arms, _COST))
    for path, accuracy in comparison.base_accuracy.items():
        console.print(f"Before training, {escape(path)}: accuracy {accuracy:.3f}.")
    if comparison.teacher_accuracy is not None:
        console.print(f"Teacher: accuracy {comparison.teacher_accuracy:.3f}.")
    for sentence in comparison.sentences:
        console.print(f"• {escape(sentence)}")


def _table(title: str, arms: list[Arm], columns: dict[str, Callable[[Arm], str]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("arm", overflow="fold", min_width=_ARM_WIDTH)
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "horizon" else "right", no_wrap=True)
    for arm in arms:
        name = escape(arm.name) + (" (baseline)" if arm.is_baseline else "")
        table.add_row(name, *(cell(arm) for cell in columns.values()))
    return table


def _figure(value: float | None, how: str) -> str:
    return "–" if value is None else format(value, how)


_WIDE = 130  # columns that all figures need side by side
_ARM_WIDTH = 12
_LEARNT: dict[str, Callable[[Arm], str]] = {
    "horizon": lambda arm: escape(arm.prefix),
    "accuracy": lambda arm: f"{arm.accuracy:.3f}",
    "McNemar p": lambda arm: _figure(arm.mcnemar_p, ".2g"),
    "exact": lambda arm: _figure(arm.exact, ".3f"),
    "EOS": lambda arm: _figure(arm.eos_rate, ".2f"),
    "KL": lambda arm: _figure(arm.reverse_kl, ".3f"),
}
_COST: dict[str, Callable[[Arm], str]] = {
    "rollout": lambda arm: si(arm.flops.rollout),
    "teacher": lambda arm: si(arm.flops.teacher),
    "student": lambda arm: si(arm.flops.student_forward + arm.flops.student_backward + arm.flops.recompute),
    "FLOPs": lambda arm: si(arm.flops.training),
    "saving": lambda arm: f"{arm.saving:.1f}x" if arm.saving is not None else "–",
    "seconds": lambda arm: f"{arm.training_seconds:.1f}",
}
