"""Prompts from tables, from the hub's cache and from reasoning-gym: what is read, and what is refused in which words."""

import json
import re
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from engine import prompt_files
from engine.errors import RunError
from engine.findings import findings_of
from engine.prompt_reference import GymTasks, HubDataset, PromptFile, parsed_reference
from engine.prompt_spec import PromptColumns
from engine.prompts import PromptRow, pinned, read_prompts
from engine.scorers import ReasoningGym
from engine.spec import RunSpec
from tests.engine.models import tiny_document

QUESTIONS = PromptColumns(prompt_column="question", answer_column="solution")


def refusal(reference: str, columns: PromptColumns | None = None, *, need_answer: bool = False) -> RunError:
    with pytest.raises(RunError) as caught:
        read_prompts(reference, "prompts.path", columns=columns, need_answer=need_answer)
    assert caught.value.failure == "bad_data"
    assert caught.value.message == caught.value.findings[0].message
    assert "\n" not in caught.value.message
    return caught.value


def write_parquet(path: Path, **columns: list[object]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def write_csv(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_reference_says_where_prompts_come_from() -> None:
    assert parsed_reference("data/train.jsonl") == PromptFile("data/train.jsonl")
    assert parsed_reference("builtin:tiny/data/train.jsonl") == PromptFile("builtin:tiny/data/train.jsonl")
    assert parsed_reference("hf:openai/gsm8k") == HubDataset("openai/gsm8k", None, "train", None)
    dataset = parsed_reference("hf:openai/gsm8k@refs/convert/parquet?split=test&subset=main")
    assert dataset == HubDataset("openai/gsm8k", "refs/convert/parquet", "test", "main")
    assert parsed_reference("reasoning_gym:chain_sum?size=5&seed=2") == GymTasks("chain_sum", 5, 2)
    easy = parsed_reference("reasoning_gym:chain_sum?max_terms=2&size=5&allow_negation=false")
    assert easy == GymTasks("chain_sum", 5, 0, (("allow_negation", False), ("max_terms", 2)))


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("hf:gsm8k", "'gsm8k' is no data set's name; write hf:organisation/name or hf:organisation/name@revision."),
        ("hf:../../etc", "'../../etc' is no data set's name; write hf:organisation/name or hf:organisation/name@revision."),
        ("hf:a/b?spilt=test", "'spilt' is no option of it; the options are split and subset."),
        ("hf:a/b?split=..%2Fx", "split is '../x' and must be a plain word; correct it."),
        ("reasoning_gym:Chain Sum", "'Chain Sum' is no task's name; write one such as reasoning_gym:chain_sum?size=500&seed=1."),
        ("reasoning_gym:gcd?size=0", "size is '0' and must be a whole number from 1 to 1000000; correct it."),
        ("reasoning_gym:gcd?seed=-1", "seed is '-1' and must be a whole number from 0 to 4294967295; correct it."),
        ("reasoning_gym:gcd?size=1&size=2", "an option is given twice; name each once."),
        ("reasoning_gym:gcd?max_value=x", "max_value is 'x' and must be true, false or a whole number from -10000 to 10000; correct it."),
        ("reasoning_gym:gcd?n=10001", "n is '10001' and must be true, false or a whole number from -10000 to 10000; correct it."),
        ("reasoning_gym:gcd?Max=1", "'Max' is no setting's name; write one such as max_digits=2."),
    ],
)  # fmt: skip
def test_a_reference_that_cannot_be_understood_is_refused_in_a_sentence(reference: str, problem: str) -> None:
    assert refusal(reference).message == f"prompts.path is {reference!r}, but {problem}"


def test_parquet_rows_are_read_by_their_columns(tmp_path: Path) -> None:
    count = 600  # more than a batch
    path = write_parquet(
        tmp_path / "p.parquet",
        question=[f"q{i}" for i in range(count)],
        solution=list(range(count)),
        other=[[i] for i in range(count)],
    )
    rows = read_prompts(path, "prompts.path", columns=QUESTIONS, need_answer=True)
    assert rows == [PromptRow(f"q{i}", str(i)) for i in range(count)]
    assert rows[299].place == f"row 300 of {path!r}"
    assert read_prompts(path, "prompts.path", columns=QUESTIONS, limit=2) == rows[:2]


def test_csv_rows_are_read_with_quotes_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "p.csv", '\ufeffquestion,solution\n"one, ""two""\nthree",4\n\n問,5\n')
    rows = read_prompts(path, "prompts.path", columns=QUESTIONS, need_answer=True)
    assert rows == [PromptRow('one, "two"\nthree', "4"), PromptRow("問", "5")]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_missing_column_is_a_finding_at_the_field_that_names_it(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / f"p.{kind}")
    if kind == "csv":
        write_csv(Path(path), "question,solution\na,b\n")
    else:
        write_parquet(Path(path), question=["a"], solution=["b"])
    error = refusal(path)
    assert error.message == (
        f"prompts.path is {path!r}, which has no column 'prompt' (it has 'question', 'solution'); "
        "set prompts.prompt_column to one of them."
    )
    assert error.findings[0].field == "prompts.prompt_column"
    named = refusal(path, PromptColumns(prompt_column="question", answer_column="answr"))
    assert named.findings[0].field == "prompts.answer_column"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("prompt,answer\nx,1\n", None),
        ("prompt,answer\nx\n", "row 1 of {path} has 1 values but the header has 2; correct it or quote its commas."),
        ("prompt,answer\ny,2\n  ,1\n", "row 2 of {path} has no text under 'prompt'; fill it in or remove the row."),
        ('prompt,answer\ny,2\n"x,1\n', "row 2 of {path} is not CSV in UTF-8 (unexpected end of data); correct it."),
    ],
)
def test_a_bad_csv_row_is_named_by_its_number(tmp_path: Path, text: str, problem: str | None) -> None:
    path = write_csv(tmp_path / "p.csv", text)
    if problem is None:
        assert read_prompts(path, "prompts.path") == [PromptRow("x", "1")]
    else:
        assert refusal(path).message == "prompts.path: " + problem.format(path=repr(path))


def test_csv_that_is_no_text_is_named_by_its_row(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(b"prompt\n" + b"good\n" * 5000 + b"\xff\xfe\n")
    assert "is not CSV in UTF-8" in refusal(str(path)).message


def test_a_bad_parquet_row_is_named_by_its_number(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "p.parquet", prompt=["a", None, "c"])
    assert refusal(path).message == (
        f"prompts.path: row 2 of {path!r} has no text under 'prompt'; fill it in or remove the row."
    )


def test_a_torn_parquet_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = Path(write_parquet(tmp_path / "p.parquet", prompt=["a"] * 1000))
    path.write_bytes(path.read_bytes()[:-50])
    assert "is no sound Parquet file" in refusal(str(path)).message


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "p.csv", "prompt,answer\n")
    assert refusal(path).message == f"prompts.path: {path!r} has no rows; give it at least one prompt."


def test_files_and_rows_beyond_the_limits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = tmp_path / "p.jsonl"
    lines.write_text(json.dumps({"prompt": "x" * 200}) + "\n")
    table = write_parquet(tmp_path / "p.parquet", prompt=["x" * 100_000] * 40)
    csv = write_csv(tmp_path / "p.csv", "prompt\n" + "x" * 200)
    monkeypatch.setattr(prompt_files, "MAX_ROW_BYTES", 100)
    assert "line 1 of" in refusal(str(lines)).message
    assert "is longer than the limit of 100 bytes; put one object on each line." in refusal(str(lines)).message
    assert "row 1 of" in refusal(csv).message
    monkeypatch.setattr(prompt_files, "MAX_FILE_BYTES", 50_000)
    assert "unpacks to" in refusal(table).message  # it has a few hundred bytes on disk
    monkeypatch.setattr(prompt_files, "MAX_FILE_BYTES", 100)
    assert (
        refusal(str(lines)).message
        == f"prompts.path is {str(lines)!r}, which has 215 bytes, the limit is 100; split it."
    )


def test_reasoning_gym_makes_the_same_tasks_again() -> None:
    reference = "reasoning_gym:chain_sum?size=40&seed=3"
    rows = read_prompts(reference, "evaluation.path", limit=5, need_answer=True)
    assert rows == read_prompts(reference, "evaluation.path", limit=5)
    assert rows != read_prompts("reasoning_gym:chain_sum?size=40&seed=4", "evaluation.path", limit=5)
    expression = rows[0].prompt.partition(": ")[2].removesuffix(" =").replace(" ", "")
    terms = expression.replace("-", "+-").split("+")
    assert sum(int(term) for term in terms if term) == int(rows[0].answer or "")
    assert json.loads(rows[4].entry or "") == {"task": "chain_sum", "seed": 3, "size": 40, "index": 4}


def test_the_scorer_of_a_task_finds_it_again_by_its_entry() -> None:
    import reasoning_gym

    row = read_prompts("reasoning_gym:gcd?size=4&seed=1", "evaluation.path")[2]
    place = json.loads(row.entry or "")
    tasks = reasoning_gym.create_dataset(place["task"], seed=place["seed"], size=place["size"])
    assert tasks[place["index"]]["question"] == row.prompt
    assert tasks.score_answer(row.answer, tasks[place["index"]]) == 1.0


def test_settings_make_tasks_easier_and_the_scorer_makes_the_same() -> None:
    reference = "reasoning_gym:chain_sum?size=20&seed=1&min_terms=2&max_terms=2&min_digits=1&max_digits=1"
    rows = read_prompts(reference, "evaluation.path")
    assert all(re.fullmatch(r".*: \d [+-] \d =", row.prompt) for row in rows)
    scorer = ReasoningGym(task="chain_sum")
    assert [scorer.mark(row.answer or "", "", row.entry).is_right for row in rows] == [True] * 20
    assert not scorer.mark("100", "", rows[0].entry).is_right


def test_an_unknown_task_is_refused_in_a_sentence() -> None:
    assert refusal("reasoning_gym:no_such_task").message == (
        "prompts.path is 'reasoning_gym:no_such_task', which reasoning-gym cannot make "
        "(Dataset 'no_such_task' not registered); name another task or setting."
    )
    assert "unexpected keyword argument 'max_digits'" in refusal("reasoning_gym:gcd?max_digits=1").message
    no_word_is_as_long = refusal("reasoning_gym:spell_backward?min_word_len=60&max_word_len=90").message
    assert "which reasoning-gym cannot make (Cannot choose from an empty sequence)" in no_word_is_as_long


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""

    def no_network(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    return tmp_path / "hub"


def cached_dataset(cache: Path, files: dict[str, bytes], name: str = "org/questions") -> None:
    """A data set in the cache as the hub's client lays it out: links in a snapshot to blobs beside it."""
    root = cache / f"datasets--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for number, (path, content) in enumerate(files.items()):
        (root / "blobs" / f"{number:040x}").write_bytes(content)
        link = root / "snapshots" / COMMIT / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (2 + path.count("/"))) / "blobs" / f"{number:040x}")


def parquet(*questions: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"question": list(questions), "solution": ["1"] * len(questions)}), sink)
    return bytes(sink.getvalue())


def prompts_in(reference: str) -> list[str]:
    return [row.prompt for row in read_prompts(reference, "prompts.path", columns=QUESTIONS)]


def test_a_data_set_of_the_hub_is_read_from_the_cache_by_split_and_subset(cache: Path) -> None:
    files = {
        "README.md": b"---\nlicense: mit\n---\n",
        "main/train-00000-of-00002.parquet": parquet("a", "b"),
        "main/train-00001-of-00002.parquet": parquet("c"),
        "main/test-00000-of-00001.parquet": parquet("t"),
        "socratic/train-00000-of-00001.parquet": parquet("s"),
    }
    cached_dataset(cache, files)
    assert prompts_in("hf:org/questions?subset=main") == ["a", "b", "c"]
    assert prompts_in("hf:org/questions@main?split=test&subset=main") == ["t"]
    assert prompts_in(f"hf:org/questions@{COMMIT}?subset=socratic") == ["s"]
    assert pinned("hf:org/questions?subset=main", "prompts.path") == (
        f"hf:org/questions@{COMMIT}?split=train&subset=main"
    )
    assert refusal("hf:org/questions?split=validation&subset=main", QUESTIONS).message.startswith(
        "prompts.path is 'hf:org/questions?split=validation&subset=main', which has no data files for split 'validation' "
        "of 'main' (it has main/test-00000-of-00001.parquet, "
    )


def test_a_part_of_a_split_in_the_cache_is_not_taken_for_the_whole(cache: Path) -> None:
    files = {
        "main/train-00000-of-00003-5a.parquet": parquet("a"),
        "main/train-00002-of-00003-7c.parquet": parquet("c"),
        "main/test-00000-of-00001.parquet": parquet("t"),
    }
    cached_dataset(cache, files)
    assert refusal("hf:org/questions?subset=main", QUESTIONS).message == (
        "prompts.path is 'hf:org/questions?subset=main', which has only 2 of the 3 files main/train-… in this machine's cache, "
        "and the hub cannot be reached; connect it, or copy the cache of a machine that has all of them."
    )
    assert prompts_in("hf:org/questions?subset=main&split=test") == ["t"], "other splits are whole"


def test_the_card_of_a_data_set_says_which_files_are_a_split(cache: Path) -> None:
    card = """---
configs:
- config_name: hard
  data_files:
  - split: train
    path: hard/*.jsonl
- config_name: easy
  data_files:
  - split: train
    path: ["easy/a.csv", "easy/b.csv"]
---
"""
    files = {
        "README.md": card.encode(),
        "hard/x.jsonl": b'{"question": "h", "solution": "1"}\n',
        "easy/a.csv": b"question,solution\ne1,1\n",
        "easy/b.csv": b"question,solution\ne2,1\n",
    }
    cached_dataset(cache, files)
    assert prompts_in("hf:org/questions?subset=hard") == ["h"]
    assert prompts_in("hf:org/questions?subset=easy") == ["e1", "e2"]
    assert "which has the subsets hard, easy; add one as &subset=…" in refusal("hf:org/questions").message


def test_a_data_set_without_named_splits_is_all_train(cache: Path) -> None:
    cached_dataset(cache, {"questions.csv": b"question,solution\nq,1\n"})
    assert prompts_in("hf:org/questions") == ["q"]
    assert "no data files for split 'test'" in refusal("hf:org/questions?split=test", QUESTIONS).message


@pytest.mark.usefixtures("cache")
def test_a_hub_that_cannot_be_reached_is_named() -> None:
    message = refusal("hf:org/absent").message
    assert message == (
        "prompts.path is 'hf:org/absent', which is neither in this machine's cache nor can the hub be reached "
        "([Errno -2] Name or service not known); connect it, or copy the cache of a machine that has the data set."
    )


def test_a_link_that_leads_out_of_the_cache_is_refused(cache: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"question": "secret"}\n')
    cached_dataset(cache, {"other.txt": b""})
    (cache / "datasets--org--questions" / "snapshots" / COMMIT / "train.jsonl").symlink_to(secret)
    assert "leads out of it" in refusal("hf:org/questions").message


@pytest.mark.parametrize("field", ["prompts.path", "evaluation.path", "evaluation.report_path"])
def test_a_spec_refuses_such_a_reference_in_the_same_words(field: str) -> None:
    document: dict[str, Any] = json.loads(json.dumps(tiny_document()))
    group, name = field.split(".")
    document[group][name] = "hf:gsm8k"
    with pytest.raises(ValidationError) as caught:
        RunSpec.model_validate(document)
    (finding,) = findings_of(caught.value, document)
    assert finding.field == field
    assert finding.message == (
        f"{field} is 'hf:gsm8k', but 'gsm8k' is no data set's name; write hf:organisation/name or hf:organisation/name@revision."
    )
