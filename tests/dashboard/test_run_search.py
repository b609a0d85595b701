"""The search box: what each term finds, and what is said of a term that means nothing."""

from types import ModuleType

import pytest

from backend.schemas import RunSummary
from dashboard.run_search import found


@pytest.fixture
def runs(records: ModuleType) -> list[RunSummary]:
    return [records.run(one) for one in records.ARM_OF]


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("prefix 8", lambda run: "prefix" in run.name and "8" in f"{run.name} {run.prefix}"),
        ("state:failed", lambda run: run.state == "failed"),
        ("acc>0.9", lambda run: max(run.report_accuracy or 0, run.best_accuracy or 0) > 0.9),
        ("acc>=0.5 state:succeeded", lambda run: (run.report_accuracy or 0) >= 0.5 and run.state == "succeeded"),
        ("flops<1e11", lambda run: run.training_flops is not None and run.training_flops < 1e11),
        ("seed:0", lambda run: run.seed == 0),
        ("prefix:full", lambda run: "full" in run.prefix),
    ],
)  # fmt: skip
def test_a_term_finds_what_it_says(runs: list[RunSummary], text: str, holds: object) -> None:
    assert callable(holds)
    shown = found(runs, text)
    assert shown
    assert len(shown) <= len(runs)
    assert all(holds(run) for run in shown)
    if text.startswith("state"):
        assert len(shown) == sum(holds(run) for run in runs) < len(runs)


def test_nothing_asked_is_everything_and_a_strange_name_finds_nothing(runs: list[RunSummary]) -> None:
    assert found(runs, "  ") == runs
    assert found(runs, "no-such-run") == []
    assert found(runs, "a:b") == []


@pytest.mark.parametrize(
    ("text", "says"), [("speed>1", "speed cannot be compared"), ("acc>high", "compares with no number")]
)
def test_a_term_without_meaning_is_a_sentence(runs: list[RunSummary], text: str, says: str) -> None:
    with pytest.raises(ValueError, match=rf"{says}.*[.]$"):
        found(runs, text)
