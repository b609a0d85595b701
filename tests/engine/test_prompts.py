"""Prompt files: what is read, what is refused and in which words, and the order of prompts."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RunError
from engine.prompts import PromptRow, prompts_of_step, read_prompts


def write(folder: Path, *lines: str) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def refusal(reference: str, *, need_answer: bool = False) -> RunError:
    with pytest.raises(RunError) as caught:
        read_prompts(reference, "prompts.path", need_answer=need_answer)
    assert caught.value.failure == "bad_data"
    assert caught.value.findings
    assert {finding.field for finding in caught.value.findings} == {"prompts.path"}
    assert caught.value.message == caught.value.findings[0].message
    return caught.value


def test_rows_are_read_in_order_up_to_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path, *(json.dumps({"prompt": f"p{i}", "answer": str(i)}) for i in range(5)))
    assert read_prompts(path, "prompts.path", limit=3) == [PromptRow(f"p{i}", str(i)) for i in range(3)]


def test_other_keys_and_other_scripts_are_welcome(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps({"prompt": "問", "completion": "答", "level": 3}, ensure_ascii=False))
    assert read_prompts(path, "prompts.path") == [PromptRow("問", None, "答")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{not json", "line 2 of {path} is not JSON"),
        ("", "line 2 of {path} is not JSON"),
        ('"text"', 'line 2 of {path} is not an object; write {{"prompt": …}} on each line.'),
        ('{"text": "x"}', "line 2 of {path} has no text under 'prompt'; fill it in or remove the line."),
        ('{"prompt": ""}', "line 2 of {path} has no text under 'prompt'; fill it in or remove the line."),
        ('{"prompt": "  \\n"}', "line 2 of {path} has no text under 'prompt'; fill it in or remove the line."),
        ('{"prompt": 3}', "line 2 of {path} has no text under 'prompt'; fill it in or remove the line."),
        ('{"prompt": "x", "completion": 3}', "line 2 of {path} has something other than text under 'completion'"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path, '{"prompt": "good"}', line, '{"prompt": "good"}')
    assert refusal(path).message.startswith("prompts.path: " + problem.format(path=repr(path)))


def test_bytes_that_are_not_text_are_named_by_their_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "good"}\n{"prompt": "\xff\xfe"}\n')
    assert f"line 2 of {str(path)!r} is not JSON" in refusal(str(path)).message


def test_nesting_without_end_is_refused_like_other_bad_lines(tmp_path: Path) -> None:
    assert "line 1 of" in refusal(write(tmp_path, "[" * 200_000)).message


def test_a_missing_answer_is_refused_where_one_is_needed(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt": "x"}')
    assert read_prompts(path, "prompts.path") == [PromptRow("x")]
    assert "line 1 of" in refusal(path, need_answer=True).message


def test_five_problems_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    error = refusal(write(tmp_path, *["{"] * 12))
    assert len(error.findings) == 5
    assert error.findings[-1].message.endswith("(7 more have problems.)")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    refusal(str(path))


@pytest.mark.parametrize("name", ["absent.jsonl", "", "a" * 300])
def test_what_is_no_file_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    reference = str(tmp_path / name)
    message = refusal(reference).message
    assert message.startswith(f"prompts.path is {reference!r}, but ")
    assert message.endswith("correct the path.")


def test_a_reference_that_climbs_out_is_refused_in_one_sentence() -> None:
    assert "leads out of its folder" in refusal("builtin:../pyproject.toml").message


@given(st.integers(1, 30), st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_every_prompt_comes_once_per_epoch(num_prompts: int, seed: int, per_step: int) -> None:
    steps = 2 * num_prompts  # 2·per_step epochs
    drawn = [index for step in range(steps) for index in prompts_of_step(num_prompts, seed, step, per_step)]
    epochs = [drawn[start : start + num_prompts] for start in range(0, len(drawn), num_prompts)]
    assert all(sorted(epoch) == list(range(num_prompts)) for epoch in epochs)
    assert Counter(drawn) == dict.fromkeys(range(num_prompts), 2 * per_step)


def test_the_order_depends_on_seed_and_epoch() -> None:
    first, second = prompts_of_step(100, 0, 0, 200)[:100], prompts_of_step(100, 0, 0, 200)[100:]
    assert first != second
    assert first != prompts_of_step(100, 1, 0, 100)
    assert first == prompts_of_step(100, 0, 0, 100)
