"""The tiny task, its data and the shipped weights."""

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from experiments.tiny.check import Examination, load
from experiments.tiny.fit import collate
from experiments.tiny.splits import SPLIT_SIZES, draw_splits, write_splits
from experiments.tiny.task import OPERATIONS, PROBLEM_ROUNDS, Problem, vocabulary
from experiments.tiny.texts import FLAWS, flawed_text, followed_text
from experiments.tiny.tokenizer import build_tokenizer

SHIPPED = Path(__file__).parents[2] / "experiments" / "tiny"
MODELS = ("teacher", "base", *(f"student-{flaw}" for flaw in FLAWS))

TOKENIZER = build_tokenizer()

kinds = st.integers(0, 3)
letters = st.integers(0, 5)
problems = st.builds(
    Problem,
    kinds=st.tuples(kinds, kinds),
    letters=st.tuples(letters, letters, letters),
    start=st.integers(0, 9),
    num_rounds=st.sampled_from(PROBLEM_ROUNDS),
)


@settings(deadline=None)
@given(problems)
def test_gold_completion_leads_to_the_answer_computed_without_it(problem: Problem) -> None:
    mode = (problem.kinds[0] + problem.kinds[1]) % 4
    change = sum(OPERATIONS[(letter + mode) % 6] for letter in problem.letters)
    answer = str((problem.start + problem.num_rounds * change) % 10)
    assert problem.answer == answer
    assert problem.gold.endswith(f" # {answer}")


@settings(deadline=None)
@given(problems)
def test_every_step_of_a_gold_completion_is_right_and_carried_on(problem: Problem) -> None:
    words = problem.gold.split()
    digit = problem.start
    for i in (i for i, word in enumerate(words) if word == "="):
        before, operation, _, after = words[i - 2 : i + 2]
        assert int(before) == digit
        digit = (digit + int(operation[1:])) % 10
        assert int(after) == digit


@settings(deadline=None)
@given(problems)
def test_lengths_are_those_of_the_readme(problem: Problem) -> None:
    assert len(TOKENIZER.encode(problem.prompt)) == 9
    num_tokens = len(TOKENIZER.encode(problem.gold + " <eos>", add_special_tokens=False))
    assert num_tokens == 8 + 13 * problem.num_rounds
    assert 177 <= num_tokens <= 216


@settings(deadline=None)
@given(problems)
def test_tokenizer_round_trip_gives_the_text_back(problem: Problem) -> None:
    text = f"{problem.prompt} {problem.gold}"
    ids = TOKENIZER.encode(text)
    assert ids[0] == TOKENIZER.bos_token_id
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_has_81_words_and_refuses_others() -> None:
    assert len(TOKENIZER) == len(set(vocabulary())) + 3 == 81
    with pytest.raises(Exception, match="Missing"):
        TOKENIZER.encode("hello")


@settings(deadline=None)
@given(problems, st.integers(0, 2**32))
def test_followed_text_differs_from_what_follows_only_where_it_carries_no_loss(problem: Problem, seed: int) -> None:
    text = followed_text(problem, random.Random(seed))
    words, gold = text.completion.split(), problem.gold.split()
    assert len(words) == len(gold)
    operations = words[1:4]
    for i in (i for i, word in enumerate(words) if word == "="):
        before, operation, _, after = words[i - 2 : i + 2]
        assert operation in operations
        if i + 1 not in text.unlearned:
            assert int(after) == (int(before) + int(operation[1:])) % 10
    if not text.unlearned:
        assert text.completion == problem.gold


@settings(deadline=None)
@given(problems)
def test_each_flaw_is_where_its_name_says(problem: Problem) -> None:
    gold = problem.gold.split()
    plan, skill, late = (flawed_text(problem, flaw).completion.split() for flaw in FLAWS)
    assert (plan == gold) == (problem.kinds[1] == 0)
    assert plan[0] == f"m{problem.kinds[0]}"
    assert skill[:5] == gold[:5]
    assert (skill == gold) == all(operation[1] == "+" for operation in gold[1:4])
    assert late[:-1] == gold[:-1]
    assert int(late[-1]) == (int(gold[-1]) + 1) % 10


def test_only_learned_completion_tokens_carry_loss() -> None:
    problem = Problem(kinds=(3, 0), letters=(3, 2, 3), start=4, num_rounds=13)
    text = followed_text(problem, random.Random(1))
    ids, labels = collate([text], TOKENIZER, 256)
    num_learned = len(text.completion.split()) + 1 - len(text.unlearned)
    assert int((labels != -100).sum()) == num_learned
    assert torch.equal(labels[labels != -100], ids[labels != -100])


def test_splits_are_disjoint_and_without_repetition() -> None:
    splits = draw_splits()
    assert {name: len(split) for name, split in splits.items()} == SPLIT_SIZES
    prompts = [problem.prompt for split in splits.values() for problem in split]
    assert len(set(prompts)) == sum(SPLIT_SIZES.values())


def test_shipped_data_is_what_the_task_writes(tmp_path: Path) -> None:
    write_splits(tmp_path)
    for name in SPLIT_SIZES:
        shipped = (SHIPPED / "data" / f"{name}.jsonl").read_text("utf-8")
        assert shipped == (tmp_path / f"{name}.jsonl").read_text("utf-8")
    assert set(json.loads(shipped.splitlines()[0])) == {"prompt"}


def test_shipped_weights_stay_small() -> None:
    num_bytes = sum(file.stat().st_size for file in (SHIPPED / "models").rglob("*"))
    assert num_bytes < 8_000_000


@pytest.mark.parametrize("name", MODELS)
def test_shipped_folder_opens_with_the_tokenizer_of_the_task(name: str) -> None:
    folder = SHIPPED / "models" / name
    model, tokenizer = load(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert model.config.vocab_size == 81
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    generation = model.generation_config
    assert generation is not None
    assert special == (generation.pad_token_id, generation.bos_token_id, generation.eos_token_id)


def test_shipped_teacher_solves_20_problems() -> None:
    torch.set_num_threads(1)
    solved = Examination(SHIPPED, num_problems=20).solve("teacher")
    assert solved.trace == 1.0
