"""Prompts that are too long are refused, left out or cut, as the spec says; counted and told, never silently."""

import json
from pathlib import Path

import pytest

from engine.check import check
from engine.encode import token_ids_of
from engine.errors import RunError
from engine.events import Ready, Warned
from engine.setup import RunData, fit_lengths, load_data
from tests.engine.models import tiny_document, tiny_model, tiny_spec
from tests.engine.running import quick_spec, train_here

LENGTHS = [3, 9, 5, 12, 4]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Prompts of 3, 9, 5, 12 and 4 tokens (the tokenizer puts a BOS before the words)."""
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": " ".join(f"c{i % 6}" for i in range(n - 1)), "answer": "1"} for n in LENGTHS]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def fitted(path: str, **prompts: object) -> RunData:
    evaluation = tiny_document()["evaluation"]
    assert isinstance(evaluation, dict)
    spec = tiny_spec(prompts={"path": path, **prompts}, evaluation=evaluation | {"path": path, "num_prompts": 4})
    model = tiny_model()
    return fit_lengths(spec, load_data(spec, model.tokenizer), model, model)


def lengths(data: RunData) -> list[int]:
    return [len(prompt.token_ids) for prompt in data.train]


def test_the_prompts_have_the_lengths_that_these_tests_assume(path: str) -> None:
    assert lengths(fitted(path)) == LENGTHS


def test_a_prompt_beyond_the_limit_is_refused_by_default(path: str) -> None:
    with pytest.raises(RunError) as caught:
        fitted(path, max_prompt_tokens=8)
    assert caught.value.failure == "bad_data"
    assert caught.value.message == (
        f"prompts.path: line 2 of {path!r} has a prompt of 9 tokens, the limit is 8 (2 of all prompts are too long); "
        "shorten it, raise prompts.max_prompt_tokens, or set prompts.overlong to drop or truncate_left."
    )
    assert caught.value.findings[0].field == "prompts.overlong"


def test_overlong_prompts_are_dropped_and_counted_in_training_and_evaluation(path: str) -> None:
    data = fitted(path, max_prompt_tokens=8, overlong="drop")
    assert lengths(data) == [3, 5, 4]
    assert [len(prompt.token_ids) for prompt in data.dev] == [3, 5]
    assert data.overlong["prompts.path"].in_words == "2 of 5 prompts are longer than 8 tokens and were left out."
    assert data.overlong["evaluation.path"].in_words == "2 of 4 prompts are longer than 8 tokens and were left out."


def test_nothing_left_is_refused(path: str) -> None:
    with pytest.raises(RunError, match="all 5 prompts are longer than the limit of 2 tokens"):
        fitted(path, max_prompt_tokens=2, overlong="drop")


def test_a_cut_prompt_keeps_its_end_and_its_first_mark(path: str) -> None:
    whole, data = fitted(path), fitted(path, max_prompt_tokens=8, overlong="truncate_left")
    assert lengths(data) == [3, 8, 5, 8, 4]
    before, after = whole.train[1].token_ids, data.train[1].token_ids
    bos = tiny_model().tokenizer.bos_token_id
    assert after == ([bos, *before[-7:]] if before[0] == bos else before[-8:])
    assert data.overlong["prompts.path"].in_words.endswith("and were cut off at the beginning.")


def test_the_context_is_the_limit_where_none_is_given(path: str) -> None:
    data_of = {}
    for choice in ("drop", "truncate_left"):
        evaluation = tiny_document()["evaluation"]
        assert isinstance(evaluation, dict)
        spec = tiny_spec(
            prompts={"path": path, "overlong": choice},
            evaluation=evaluation | {"path": path},
            max_completion_tokens=256 - 9,
        )
        model = tiny_model()
        data_of[choice] = fit_lengths(spec, load_data(spec, model.tokenizer), model, model)
    assert lengths(data_of["drop"]) == [3, 9, 5, 4]
    assert lengths(data_of["truncate_left"]) == [3, 9, 5, 9, 4]


def test_a_completion_that_fills_the_context_is_refused_whatever_the_choice(path: str) -> None:
    evaluation = tiny_document()["evaluation"]
    assert isinstance(evaluation, dict)
    prompts = {"path": path, "overlong": "truncate_left"}
    spec = tiny_spec(prompts=prompts, evaluation=evaluation | {"path": path}, max_completion_tokens=256)
    model = tiny_model()
    with pytest.raises(
        RunError, match="max_completion_tokens is 256 but the student's context of 256 tokens leaves 244"
    ):
        fit_lengths(spec, load_data(spec, model.tokenizer), model, model)


def test_a_chat_keeps_its_frame_when_its_prompt_is_cut(path: str) -> None:
    model = tiny_model()
    model.tokenizer.chat_template = "{% for m in messages %}m0 {{ m['content'] }} m1{% endfor %}"
    spec = tiny_spec(prompts={"path": path, "template": "chat", "max_prompt_tokens": 8, "overlong": "truncate_left"})
    data = fit_lengths(spec, load_data(spec, model.tokenizer), model, model)
    frame = token_ids_of(spec, model.tokenizer, ["k0"])[0]
    for prompt, length in zip(data.train, LENGTHS, strict=True):
        assert (prompt.token_ids[0], prompt.token_ids[-1]) == (frame[0], frame[-1])
        assert len(prompt.token_ids) == min(8, length + 1)  # the frame has a word more than a BOS


def test_a_run_tells_what_it_left_out_and_where_its_prompts_come_from(path: str, tmp_path: Path) -> None:
    spec = quick_spec(prompts={"path": path, "max_prompt_tokens": 9, "overlong": "drop"}, num_steps=2)
    events = train_here(spec, tmp_path / "run")
    (warning,) = [
        e for e in events if isinstance(e, Warned) and e.code == "overlong_prompts" and "prompts.path" in e.message
    ]
    assert warning.message == "prompts.path: 1 of 5 prompts is longer than 9 tokens and was left out."
    (ready,) = [e for e in events if isinstance(e, Ready)]
    assert ready.sources == {"prompts.path": path, "evaluation.path": "builtin:tiny/data/dev.jsonl"}


def test_a_preflight_counts_overlong_prompts(path: str) -> None:
    result = check(tiny_spec(prompts={"path": path, "max_prompt_tokens": 9, "overlong": "truncate_left"}))
    assert result.findings == []
    assert (
        result.facts["overlong prompts.path"]
        == "1 of 5 prompts is longer than 9 tokens and was cut off at the beginning."
    )
