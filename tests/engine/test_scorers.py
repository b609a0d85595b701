"""Which completions are right."""

import inspect
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from reasoning_gym.factory import DATASETS

from engine.judge_process import ARITHMETIC_TASKS
from engine.scorers import (
    EVALUATED_TASKS,
    AfterMarker,
    ExactMatch,
    FinalNumber,
    Mark,
    MathVerify,
    MultipleChoice,
    ReasoningGym,
    Scorer,
)


@pytest.mark.parametrize(
    ("completion", "answer", "is_right"),
    [
        ("so the answer is 42.", "42", True),
        ("12 + 30 = 42", "42", True),
        ("42, no: 41", "42", False),
        ("it costs $1,234.50 in all", "1234.5", True),
        ("-7", "-7", True),
        ("7", "-7", False),
        ("3.0", "3", True),
        ("no number at all", "3", False),
        ("", "3", False),
        ("3", "none", False),
        ("#### 18", "#### 18", True),
        ("9" * 400, "1", False),
        ("9007199254740993", "9007199254740992", False),
        ("9007199254740993.0", "9,007,199,254,740,993", True),
        ("0.1", "0.10000000000000000001", False),
        ("-0.00", "0", True),
        ("007.50", "7.5", True),
        ("٤٢", "42", True),
        ("3." + "0" * 5000, "3", True),
        ("9" * 400, "9" * 399 + "8", False),
        ("9" * 400, "9" * 400, True),
        ("9" * 100_000, "9" * 100_000, False),
    ],
)
def test_the_last_number_decides(completion: str, answer: str, is_right: bool) -> None:
    assert FinalNumber().is_right(completion, answer) is is_right


@given(st.text("0123456789,.-e ٣x\x00", max_size=40), st.text("0123456789,.-", max_size=40))
def test_numbers_are_right_when_their_fractions_are_equal_and_any_text_gets_a_mark(text: str, answer: str) -> None:
    def value(of: str) -> Fraction | None:
        found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", of)
        return Fraction(found[-1].replace(",", "")) if found else None

    ours, theirs = FinalNumber().mark(text, answer), FinalNumber().mark(answer, text)
    assert ours.is_right == theirs.is_right == (ours.found is not None and ours.found == theirs.found)
    assert ours.is_right == (value(text) is not None and value(text) == value(answer))


@pytest.mark.parametrize(
    ("completion", "answer", "is_right"),
    [
        ("m3 ; 4 5 # 8", "8", True),
        ("m3 ; 4 5 #  8  ", "8", True),
        ("# 7 # 8", "8", True),
        ("# 8 # 7", "8", False),
        ("8", "8", False),
        ("# 88", "8", False),
        ("#", "8", False),
    ],
)
def test_the_text_behind_the_last_marker_decides(completion: str, answer: str, is_right: bool) -> None:
    assert AfterMarker(marker="#").is_right(completion, answer) is is_right


def test_a_marker_can_be_words() -> None:
    assert AfterMarker(marker="The answer is").is_right("Well. The answer is B", "B")


@pytest.mark.parametrize(
    ("scorer", "completion", "answer", "mark"),
    [
        (FinalNumber(), "so 1,200.0", "1200", Mark(True, "1200")),
        (FinalNumber(), "none", "1200", Mark(False, None)),
        (FinalNumber(), "1,234,567", "1234568", Mark(False, "1234567")),
        (FinalNumber(), "1234568.00", "1234568", Mark(True, "1234568")),
        (FinalNumber(), "1" * 5000, "1", Mark(False, None)),
        (AfterMarker(), "# 7 # 8 ", "8", Mark(True, "8")),
        (AfterMarker(), "8", "8", Mark(False, None)),
        (ExactMatch(), "a  b\n", "a b", Mark(True, "a b")),
        (ExactMatch(), "a b c", "a b", Mark(False, "a b c")),
        (ExactMatch(), " ", "a b", Mark(False, None)),
        (MultipleChoice(), "Either (B) or (C). The answer is (C).", "C", Mark(True, "C")),
        (MultipleChoice(), "the answer is A, no: the answer is J", "A", Mark(False, "J")),
        (MultipleChoice(), "C", "C", Mark(False, None)),
        (MultipleChoice(form="parentheses"), "Not (A), so (D)", "D", Mark(True, "D")),
        (MultipleChoice(form="parentheses"), "(E)", "D", Mark(False, None)),
    ],
)
def test_equal_answers_get_equal_marks(scorer: Scorer, completion: str, answer: str, mark: Mark) -> None:
    assert scorer.mark(completion, answer) == mark


@pytest.mark.parametrize(
    ("completion", "answer", "is_right"),
    [
        (r"So the area is $\boxed{\frac{1}{2}}$.", "0.5", True),
        (r"The final answer is $\left( 3, \frac{\pi}{2} \right)$. I hope it is correct.", r"(3,\pi/2)", True),
        (r"\boxed{x^2 + 2x + 1}", "(x+1)^2", True),
        (r"First $\boxed{5}$, then $\boxed{14}$", "14", True),
        ("The answer is 14", "14", True),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", True),
        (r"\boxed{15}", "14", False),
        ("", "14", False),
        ("I do not know", "14", False),
        (r"\boxed{", "14", False),
        ("\ud800\x00 \\boxed{14}", "14", True),
        (r"\frac{" * 5000, "14", False),
        (r"\boxed{__import__('os').getcwd()}", "14", False),
    ],
)
def test_math_verify_compares_values_and_survives_hostile_text(completion: str, answer: str, is_right: bool) -> None:
    assert MathVerify().is_right(completion, answer) is is_right


def test_math_verify_finds_one_form_for_equal_numbers() -> None:
    assert MathVerify().mark(r"\boxed{14.0}", "14").found == MathVerify().mark("so $14.0$", "14").found


def test_a_completion_that_hangs_the_parser_is_wrong_and_the_next_one_is_marked() -> None:
    began = time.monotonic()
    assert MathVerify(timeout_seconds=0.2).mark(r"\boxed{9^{9^{9^{9}}}}", "1") == Mark(False, None)
    assert time.monotonic() - began < 60
    assert MathVerify().is_right(r"\boxed{14}", "14")


def test_completions_are_marked_outside_the_main_thread() -> None:
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda answer: MathVerify().is_right(r"\boxed{2}", answer), ["2", "3", "2"])) == [
            True, False, True,
        ]  # fmt: skip


def test_a_task_of_reasoning_gym_is_marked_by_its_own_scorer() -> None:
    place = json.dumps({"seed": 0, "size": 3, "index": 0})
    countdown = ReasoningGym(task="countdown")  # 164 out of 66, 34, 98, 54, 6: any expression will do
    assert countdown.is_right("<answer>98*6 - 54*6 - 34 - 66</answer>", "", place) is False  # 6 is used twice
    assert countdown.is_right("<answer>(98 - 54)*6 - 66 - 34</answer>", "6*(98 - 54) - 34 - 66", place)
    assert ReasoningGym(task="spell_backward").is_right("noremopyh", "noremopyh", place)


def test_reasoning_gym_gets_no_code_to_run(tmp_path: Path) -> None:
    place = json.dumps({"seed": 0, "size": 3, "index": 0})
    for task in ("countdown", "spiral_matrix", "binary_matrix", "puzzle24"):
        code = f"__import__('pathlib').Path({str(tmp_path / task)!r}).touch()"
        assert ReasoningGym(task=task).is_right(f"<answer>{code}</answer>", "", place) is False
    assert list(tmp_path.iterdir()) == []


def test_scorers_that_run_the_completion_are_known() -> None:
    runs_text = re.compile(r"\b(?:eval|exec|sympify|parse_expr)\(answer")
    evaluating = {
        name for name, (task, _) in DATASETS.items() if runs_text.search(inspect.getsource(task.score_answer))
    }
    assert evaluating == EVALUATED_TASKS | ARITHMETIC_TASKS


def test_a_task_whose_scorer_runs_the_completion_is_refused() -> None:
    with pytest.raises(ValidationError, match="runs the completion as Python code; choose another task"):
        ReasoningGym(task="n_queens")
