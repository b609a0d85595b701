"""The search box of the run list: words, `state:failed`, `seed:1`, `acc>0.9`, `flops<1e12`, `steps>=100`."""

import operator
import re
from collections.abc import Callable

from backend.schemas import RunSummary

Test = Callable[[RunSummary], bool]

HELP = (
    "Words look at name, experiment, prefix, divergence and models. Narrow with state:failed, seed:1, prefix:8, acc>0.9, "
    "flops<1e12, seconds<60, steps>=100; all must hold."
)
_TEXTS: dict[str, Callable[[RunSummary], object]] = {
    "state": lambda run: run.state,
    "seed": lambda run: run.seed,
    "prefix": lambda run: run.prefix,
    "experiment": lambda run: run.experiment_name,
    "divergence": lambda run: run.divergence,
    "student": lambda run: run.student,
    "teacher": lambda run: run.teacher,
}
_NUMBERS: dict[str, Callable[[RunSummary], float | None]] = {
    "acc": lambda run: run.report_accuracy if run.report_accuracy is not None else run.best_accuracy,
    "flops": lambda run: run.training_flops,
    "seconds": lambda run: run.training_seconds,
    "steps": lambda run: run.step,
}
_COMPARED: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq,
}  # fmt: skip
_NUMBER_TERM = re.compile(r"([a-z]+)(>=|<=|>|<|=)(.*)", re.DOTALL)


def found(runs: list[RunSummary], text: str) -> list[RunSummary]:
    """Runs for which every term of `text` holds; raises ValueError with a sentence for a term that means nothing."""
    tests = [_test(term) for term in text.lower().split()]
    return [run for run in runs if all(test(run) for test in tests)]


def _test(term: str) -> Test:
    comparison = _NUMBER_TERM.fullmatch(term)
    if comparison:
        return _number_test(*comparison.groups())
    name, colon, value = term.partition(":")
    if colon and name in _TEXTS:
        text_of = _TEXTS[name]
        if name in ("state", "seed"):  # 1 is not 12
            return lambda run: str(text_of(run)) == value
        return lambda run: value in str(text_of(run)).lower()
    return lambda run: term in " ".join(
        (run.name, run.experiment_name, run.prefix, run.divergence, run.student, run.teacher)
    ).lower()  # fmt: skip


def _number_test(name: str, sign: str, typed: str) -> Test:
    if name not in _NUMBERS:
        raise ValueError(f"{name} cannot be compared; write one of {', '.join(_NUMBERS)}, such as acc>0.9.")
    try:
        limit = float(typed)
    except ValueError:
        raise ValueError(f"{name}{sign}{typed} compares with no number; write one, such as {name}{sign}0.9.") from None
    number_of, compared = _NUMBERS[name], _COMPARED[sign]

    def holds(run: RunSummary) -> bool:
        number = number_of(run)
        return number is not None and compared(number, limit)

    return holds
