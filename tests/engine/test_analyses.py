"""Analyses of the shipped pair, whose flaw is known: the student decides its plan, the first tokens, wrongly."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.analyses.divergence_by_position import shortest_prefix
from engine.analysis_spec import AnalysisResult, AnalysisSpec
from engine.analyze import analyze
from engine.errors import RunError
from tests.engine.models import tiny_spec


@cache
def asked(kind: str, student: str = "student-plan", **parameters: object) -> AnalysisResult:
    spec = tiny_spec(
        student={"path": f"builtin:tiny/models/{student}"},
        evaluation={
            "path": "builtin:tiny/data/dev.jsonl", "num_prompts": 16, "scorer": {"kind": "after_marker", "marker": "#"},
        },
    )  # fmt: skip
    question = AnalysisSpec.model_validate(
        {"run": spec.model_dump(), "analysis": {"kind": kind, "num_prompts": 16} | parameters}
    )
    return analyze(question, lambda done, detail: None)


def test_the_divergence_of_a_wrong_plan_lies_in_its_first_tokens() -> None:
    result = asked("divergence_by_position")
    assert result.rows[7].details["cumulative_share"] is not None
    assert result.rows[7].details["cumulative_share"] > 0.8
    assert result.rows[-1].details["cumulative_share"] == pytest.approx(1)
    assert result.rows[0].count == 16
    assert all(row.low <= row.value <= row.high for row in result.rows)


def test_the_shares_come_from_the_rows() -> None:
    rows = asked("divergence_by_position").rows
    sums = np.array([row.value * row.count for row in rows])
    shares = [row.details["cumulative_share"] for row in rows]
    assert shares == pytest.approx((sums.cumsum() / sums.sum()).tolist())


def test_a_few_teacher_tokens_lift_the_student_to_the_teacher() -> None:
    result = asked("teacher_prefix")
    by_length = {row.start: row.value for row in result.rows}
    assert by_length[0] < 0.7
    assert by_length[8] == 1.0
    assert "what the teacher decides lies early" in " ".join(result.sentences)
    p_values = {row.start: row.details["p_value"] for row in result.rows}
    assert p_values[0] == 1.0
    # All that alone were wrong are right now, and none the other way: McNemar's p is 2 of so many flips.
    lost = round((1 - by_length[0]) * result.rows[0].count)
    assert p_values[8] == pytest.approx(2 / 2**lost)


def test_one_length_alone_is_compared_with_nothing() -> None:
    (sentence,) = asked("teacher_prefix", prefix_tokens=(8,)).sentences
    assert sentence.startswith("Behind 8 tokens of the teacher, the student is right in 1.000 ")


def test_a_wrong_start_leads_the_teacher_astray() -> None:
    result = asked("teacher_continues")
    by_length = {row.start: row.value for row in result.rows}
    assert by_length[0] == 1.0
    assert by_length[8] < 0.7
    assert "lead the teacher astray" in " ".join(result.sentences)


def test_a_late_flaw_is_not_lifted_by_early_teacher_tokens() -> None:
    result = asked("teacher_prefix", "student-late")
    assert max(row.value for row in result.rows) < 0.5
    assert "Prompt by prompt no length differs from 0 tokens" in " ".join(result.sentences)


def test_the_gradient_of_a_wrong_plan_comes_from_its_first_bin_and_the_shares_add_up() -> None:
    result = asked("gradient_by_position", bin_tokens=8)
    shares = [row.details["share"] for row in result.rows]
    assert sum(share for share in shares if share is not None) == pytest.approx(1, abs=1e-4)
    assert result.rows[0].value == max(row.value for row in result.rows)
    assert shares[0] is not None
    assert shares[0] > 0.9
    assert [row.start for row in result.rows[:3]] == [0, 8, 16]


def test_an_analysis_leaves_the_models_as_they_are() -> None:
    first = asked("gradient_by_position", bin_tokens=64)
    asked.cache_clear()
    again = asked("gradient_by_position", bin_tokens=64)
    assert [row.value for row in first.rows] == [row.value for row in again.rows]


def test_models_that_do_not_fit_are_named_at_their_field() -> None:
    question = AnalysisSpec(run=tiny_spec(teacher={"path": "/nowhere/teacher"}))
    with pytest.raises(RunError) as caught:
        analyze(question, lambda done, detail: None)
    assert caught.value.findings[0].field == "teacher.path"


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_the_shortest_prefix_holds_its_share_and_no_shorter_one_does(values: list[float], share: float) -> None:
    sums = np.array([values])
    if not sums.sum() > 1e-6:
        return
    length = shortest_prefix(sums, share)
    assert sums[0, :length].sum() >= share * sums.sum() - 1e-9
    assert sums[0, : length - 1].sum() < share * sums.sum() + 1e-9
