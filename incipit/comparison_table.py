"""The comparison of an experiment as a table for the terminal, with the sentences that its figures support."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from backend.comparison import Arm, Comparison, si


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print table and sentences; nothing in them is fixed text about results."""
    counts = sorted({arm.num_prompts for arm in comparison.arms})
    table = Table(
        title=f"Best checkpoint of each arm on {', '.join(map(str, counts))} full-length problems", title_justify="left"
    )
    for heading in _HEADINGS:
        table.add_column(
            heading, justify="left" if heading in ("arm", "horizon") else "right", no_wrap=heading != "arm"
        )
    for arm in comparison.arms:
        table.add_row(*_cells(arm))
    console.print(table)
    for path, accuracy in comparison.base_accuracy.items():
        console.print(f"Before training, {escape(path)}: accuracy {accuracy:.3f}.")
    if comparison.teacher_accuracy is not None:
        console.print(f"Teacher: accuracy {comparison.teacher_accuracy:.3f}.")
    for sentence in comparison.sentences:
        console.print(f"• {escape(sentence)}")


_HEADINGS = (
    "arm", "horizon", "accuracy", "exact", "EOS", "KL", "rollout", "teacher", "student", "FLOPs", "saving",
    "to target", "seconds",
)  # fmt: skip


def _cells(arm: Arm) -> list[str]:
    student = arm.flops.student_forward + arm.flops.student_backward + arm.flops.recompute
    return [
        escape(arm.name) + (" (baseline)" if arm.is_baseline else ""),
        escape(arm.prefix),
        f"{arm.accuracy:.3f}",
        _figure(arm.exact, ".3f"),
        _figure(arm.eos_rate, ".2f"),
        _figure(arm.reverse_kl, ".3f"),
        si(arm.flops.rollout),
        si(arm.flops.teacher),
        si(student),
        si(arm.flops.training),
        f"{arm.saving:.1f}x" if arm.saving is not None else "–",
        si(arm.flops_to_target),
        f"{arm.training_seconds:.1f}",
    ]


def _figure(value: float | None, how: str) -> str:
    return "–" if value is None else format(value, how)
