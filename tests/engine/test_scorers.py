"""Which completions are right."""

import pytest

from engine.scorers import AfterMarker, FinalNumber


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
    ],
)
def test_the_last_number_decides(completion: str, answer: str, is_right: bool) -> None:
    assert FinalNumber().is_right(completion, answer) is is_right


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
