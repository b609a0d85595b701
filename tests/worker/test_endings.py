"""What becomes of a run is said in words that name why it ended."""

from typing import Literal

import pytest

from engine.events import Finished
from worker.endings import finished


@pytest.mark.parametrize(
    ("reason", "words"), [("steps", "all steps"), ("flops_budget", "FLOPs budget"), ("sentinel", "tail")]
)
def test_a_finished_run_succeeds_and_says_why(reason: Literal["steps", "flops_budget", "sentinel"], words: str) -> None:
    event = Finished(time=0.0, step=7, best_step=5, reason=reason, seconds=1.0, training_seconds=1.0)
    ending = finished(event, 0)
    assert ending.state == "succeeded"
    assert "step 7" in ending.reason
    assert words in ending.reason
