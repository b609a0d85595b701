"""Estimate beside actual: phases that one side splits and the other does not, totals last, nothing invented."""

from datetime import UTC, datetime

import pandas as pd
import pytest

from backend.schemas import StoredEvent
from dashboard.estimate_panel import costs_frame, executed_of
from engine.flops import FlopLedger
from tests.dashboard import fake_records as records

SPLIT = FlopLedger(rollout=10, rollout_prefill=4, teacher=20, student_forward=5, student_backward=10, evaluation=7)
WHOLE = FlopLedger(rollout=12, teacher=40, student_forward=10, student_backward=20)
RUN = records.run(next(iter(records.ARM_OF)))


def frame(flops: FlopLedger | None, estimated: FlopLedger | None, executed: FlopLedger | None) -> pd.DataFrame:
    payload = None if estimated is None else {"flops": estimated.model_dump()}
    return costs_frame(RUN.model_copy(update={"flops": flops}), payload, executed)


def test_totals_come_last_and_the_share_is_useful_over_estimate() -> None:
    found = frame(SPLIT, SPLIT * 2, SPLIT * 3).set_index("phase")
    assert list(found.index) == [
        "rollout prefill", "rollout decode", "teacher", "student forward", "student backward", "training", "evaluation",
    ]  # fmt: skip
    assert found.loc["training"].to_dict() == {"estimate": 90, "useful": 45, "executed": 135, "share": 0.5}
    assert (found["share"] == 0.5).all()


def test_an_undivided_rollout_stands_beside_a_divided_one_without_a_share() -> None:
    found = frame(WHOLE, SPLIT, None).set_index("phase")
    assert found.loc["rollout", "useful"] == 12
    assert pd.isna(found.loc["rollout", "estimate"])
    assert pd.isna(found.loc["rollout decode", "useful"])
    assert found.loc["training", "share"] == pytest.approx(82 / 45)
    assert found["executed"].isna().all()


def test_a_run_that_has_nothing_to_show_has_no_rows() -> None:
    assert frame(None, None, None).empty


def test_executed_flops_are_those_of_the_newest_evaluation_that_told_them() -> None:
    payloads: list[dict[str, object]] = [{"executed": SPLIT.model_dump()}, {"executed": WHOLE.model_dump()}, {}]
    events = [
        StoredEvent(seq=at, time=datetime.now(UTC), kind="evaluation", attempt=1, payload=payload)
        for at, payload in enumerate(payloads)
    ]
    assert executed_of(events) == WHOLE
    assert executed_of(events[2:]) is None
