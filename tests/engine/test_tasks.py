"""The ready tasks on five made-up rows each, in the columns of the real data: prompts, answers, scorers, refusals."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from engine.errors import RunError
from engine.events import Evaluated, Ready
from engine.prompt_reference import ReadyTask, ready_tasks
from engine.prompts import PromptRow, pinned, read_prompts
from engine.task_spec import scorer_of, task_file
from tests.engine.byte_model import write_byte_model
from tests.engine.models import tiny_document
from tests.engine.running import quick_spec, train_here

ROWS = Path(__file__).parent / "task_rows"
COLUMNS = {
    "math500": ["problem", "solution", "answer", "subject", "level", "unique_id"],
    "aime24": ["id", "problem", "solution", "answer", "url", "year"],
    "aime25": ["problem", "answer", "id"],
    "amc23": ["id", "question", "answer", "url"],
    "gsm8k": ["question", "answer"],
    "gpqa_diamond": ["Record ID", "Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2",
                     "Incorrect Answer 3", "Explanation", "High-level domain", "Subdomain"],
    "mmlu_pro": ["question_id", "question", "options", "answer", "answer_index", "cot_content", "category", "src"],
}  # fmt: skip
RIGHT = {
    "math500": r"So it is $\boxed{%s}$.",
    "aime24": r"Hence \boxed{%s}",
    "aime25": r"Hence \boxed{%s}",
    "amc23": r"Hence \boxed{%s}",
    "gsm8k": "In all that makes %s.",
    "gpqa_diamond": "Neither (A) nor (B) alone decides; it is (%s).",
    "mmlu_pro": "The answer is (A)? No. The answer is (%s).",
}
TASKS = sorted(COLUMNS)


def made_up(task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (ROWS / f"{task}.jsonl").read_text().splitlines()]


def local_copy(task: str, folder: Path) -> Path:
    """The rows as a Parquet file whose name says the split, as the hub lays it out."""
    (folder / "data").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist(made_up(task)), folder / "data" / f"{task_file(task).split}-00000-of-00001.parquet"
    )
    return folder


def rows_of(task: str, folder: Path) -> list[PromptRow]:
    return read_prompts(str(ReadyTask(task, str(folder))), "evaluation.path", need_answer=True)


def byte_pair(folder: Path) -> dict[str, object]:
    """Models and prompts of a spec that can read the tasks."""
    (folder / "prompts.jsonl").write_text('{"prompt": "2 + 2 ="}\n')
    return {
        "student": {"path": str(write_byte_model(folder / "student", 1))},
        "teacher": {"path": str(write_byte_model(folder / "teacher", 2))},
        "prompts": {"path": str(folder / "prompts.jsonl")},
        "num_steps": 2,
    }


def test_all_tasks_of_the_folder_are_known() -> None:
    assert ready_tasks() == TASKS


@pytest.mark.parametrize("task", TASKS)
def test_a_task_file_names_a_source_for_each_of_its_facts(task: str) -> None:
    found = task_file(task)
    assert {"dataset", "num_problems", "prompt", "scorer"} <= found.sources.keys()
    assert all(len(one.source) > 10 for one in found.sampling.values())
    assert found.sampling["greedy"].samples_per_prompt == 0


@pytest.mark.parametrize("task", TASKS)
def test_the_made_up_rows_have_the_columns_that_the_task_reads(task: str) -> None:
    assert [list(row) for row in made_up(task)] == [COLUMNS[task]] * 5


@pytest.mark.parametrize("task", TASKS)
def test_each_problem_is_asked_with_its_question_and_marked_by_the_tasks_scorer(task: str, tmp_path: Path) -> None:
    rows = rows_of(task, local_copy(task, tmp_path))
    scorer = scorer_of(f"task:{task}", task_file("gsm8k").scorer)
    column = task_file(task).question_column
    assert len(rows) == 5
    for row, source in zip(rows, made_up(task), strict=True):
        assert row.prompt.startswith(source[column].strip())
        assert row.answer is not None
        assert scorer.is_right(RIGHT[task] % row.answer, row.answer)
        assert not scorer.is_right("I do not know", row.answer)
    assert not scorer.is_right(RIGHT[task] % rows[1].answer, str(rows[0].answer)) or rows[0].answer == rows[1].answer


def test_the_answer_of_gsm8k_is_behind_its_marker(tmp_path: Path) -> None:
    rows = rows_of("gsm8k", local_copy("gsm8k", tmp_path))
    assert [row.answer for row in rows] == ["36", "8", "1,200", "26", "-7"]


def test_choices_of_gpqa_are_shuffled_the_same_way_each_time(tmp_path: Path) -> None:
    local_copy("gpqa_diamond", tmp_path)
    rows = rows_of("gpqa_diamond", tmp_path)
    assert rows == rows_of("gpqa_diamond", tmp_path)
    for row, source in zip(rows, made_up("gpqa_diamond"), strict=True):
        assert f"({row.answer}) {source['Correct Answer'].strip()}\n" in row.prompt
        assert all(f") {source[f'Incorrect Answer {i}']}" in row.prompt for i in (1, 2, 3))
    assert len(Counter(row.answer for row in rows)) > 1, "in the data the right answer is always the first"
    assert "{choices} aside?" in rows[3].prompt, "what a question contains is not filled in"


def test_choices_of_mmlu_pro_keep_their_letters(tmp_path: Path) -> None:
    rows = rows_of("mmlu_pro", local_copy("mmlu_pro", tmp_path))
    assert [row.answer for row in rows] == ["B", "A", "C", "F", "J"]
    assert "(B) Mercury\n" in rows[0].prompt
    assert "(J) acetic\n" in rows[4].prompt


def test_a_row_that_fits_no_task_is_named(tmp_path: Path) -> None:
    broken = made_up("mmlu_pro")
    broken[2]["answer"] = "Z"
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in broken))
    with pytest.raises(
        RunError, match=r"line 3 of 'test\.jsonl' has the answer 'Z', which is no letter of its choices"
    ):
        rows_of("mmlu_pro", tmp_path)


def test_the_columns_of_another_data_set_are_refused(tmp_path: Path) -> None:
    local_copy("gsm8k", tmp_path)
    with pytest.raises(RunError, match="has no column 'problem'"):
        rows_of("math500", tmp_path)


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("task:mathematics", "there is no task 'mathematics'; the tasks are aime24, aime25"),
        ("task:math500?folder=", "its folder is empty; name one or leave it out"),
        ("task:math500?revision=../x", "must be a branch, a tag or a commit"),
        ("task:math500?split=train", "the options are folder and revision"),
    ],
)
def test_a_reference_that_means_no_task_is_refused(reference: str, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        quick_spec(evaluation={"path": reference})


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="which is not on this machine"):
        rows_of("math500", tmp_path / "absent")


def test_nobody_trains_on_a_task() -> None:
    with pytest.raises(ValidationError, match="ready tasks are for evaluation; train on other prompts"):
        quick_spec(prompts={"path": "task:gsm8k"})


def test_a_task_of_the_hubs_cache_is_pinned_to_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "datasets--HuggingFaceH4--MATH-500"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    snapshot = cache / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "test.jsonl").write_bytes((ROWS / "math500.jsonl").read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    reference = pinned("task:math500", "evaluation.path")
    assert reference == f"task:math500?revision={commit}"
    assert len(read_prompts(reference, "evaluation.path", need_answer=True)) == 5


@pytest.mark.usefixtures("home")
def test_a_run_is_evaluated_on_a_task_and_says_what_it_read(tmp_path: Path) -> None:
    reference = str(ReadyTask("gsm8k", str(local_copy("gsm8k", tmp_path / "data set"))))
    evaluation = {"path": reference, "num_prompts": 2, "num_sampled": 1, "every_steps": 1000}
    # The scorer of the spec would mark every completion with a # as wrong: a task has its own.
    spec = quick_spec(evaluation=evaluation | {"scorer": {"kind": "after_marker"}}, **byte_pair(tmp_path))
    events = train_here(spec, tmp_path / "run")
    (ready,) = [event for event in events if isinstance(event, Ready)]
    assert ready.sources["evaluation.path"] == reference
    assert all(event.num_prompts == 2 for event in events if isinstance(event, Evaluated))


@pytest.mark.usefixtures("home")
def test_a_run_is_evaluated_on_tasks_of_reasoning_gym(tmp_path: Path) -> None:
    evaluation = {
        "path": "reasoning_gym:chain_sum?size=5&seed=1", "num_prompts": 2, "num_sampled": 1, "every_steps": 1000,
        "scorer": {"kind": "reasoning_gym", "task": "chain_sum"},
    }  # fmt: skip
    events = train_here(quick_spec(evaluation=evaluation, **byte_pair(tmp_path)), tmp_path / "run")
    assert [e.verdicts.right for e in events if isinstance(e, Evaluated) and e.verdicts] == ["00", "00", "00"]
    with pytest.raises(ValidationError, match="set the path to reasoning_gym:chain_sum or choose another scorer"):
        quick_spec(evaluation=evaluation | {"path": tiny_document()["prompts"]["path"]})  # type: ignore[index]
