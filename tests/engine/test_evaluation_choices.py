"""Every choice of experiments/methods/evaluation.json trains and is measured."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.events import Evaluated, Finished
from engine.locations import resolve
from tests.engine.running import quick_document, quick_spec, train_here

pytestmark = pytest.mark.usefixtures("home")
CHOICES = json.loads(Path(resolve("builtin:methods/evaluation.json")).read_text())


def merged(base: Any, change: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(change, dict) or "kind" in change:
        return change
    return base | {key: merged(base.get(key), value) for key, value in change.items()}


@pytest.mark.parametrize("entry", CHOICES, ids=lambda entry: f"{entry['group']}: {entry['choice']}")
def test_the_choice_trains_and_is_measured(entry: dict[str, Any], tmp_path: Path) -> None:
    events = train_here(quick_spec(**merged(quick_document(num_steps=2), entry["change"])), tmp_path)
    assert isinstance(events[-1], Finished)
    last = next(event for event in reversed(events) if isinstance(event, Evaluated))
    metric = entry["change"]["evaluation"].get("primary_metric", "accuracy")
    assert last.metrics[metric] is not None
