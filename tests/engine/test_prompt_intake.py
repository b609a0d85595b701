"""What becomes of a file of prompts that somebody sends: what is written, and each way in which it can be bad, in a sentence."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from engine.conversations import parsed_conversation
from engine.errors import RunError
from engine.findings import findings_of
from engine.prompt_intake import Intake, IntakeRequest, taken_in
from engine.prompt_map import PromptMap, guessed_map
from engine.prompts import PromptRow, read_prompts
from engine.uploaded_prompts import upload_folder, upload_path, upload_reference

QA = {"prompt": "question", "answer": "result"}


def taken(path: Path, map: dict[str, str] | None = QA, **limits: int) -> Intake:
    path.with_name("target").unlink(missing_ok=True)
    sizes = {"max_rows": 1000, "max_bytes": 100_000} | limits
    return taken_in(IntakeRequest(str(path), map=map, target=str(path.with_name("target")), **sizes))


def lines(folder: Path, *rows: object, raw: bytes = b"") -> Path:
    path = folder / "p.jsonl"
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode() + raw)
    return path


def csv(folder: Path, text: str | bytes) -> Path:
    path = folder / "p.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def parquet(folder: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), folder / "p.parquet")
    return folder / "p.parquet"


def written(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.with_name("target").read_text().splitlines()]


def test_all_three_formats_become_the_same_lines(tmp_path: Path) -> None:
    rows = [{"question": "2+3=", "result": 5, "x": [1]}, {"question": 'a "b",\nc', "result": 7, "x": [2]}]
    table = csv(tmp_path, 'question,result,x\n2+3=,5,1\n"a ""b"",\nc",7,2\n')
    of_parquet = parquet(tmp_path, question=["2+3=", 'a "b",\nc'], result=[5, 7], x=[[1], [2]])
    hashes = set()
    for path in (lines(tmp_path, *rows), table, of_parquet):
        found = taken(path)
        assert found.problems == []
        assert (found.num_rows, found.num_bytes) == (2, path.with_name("target").stat().st_size)
        assert set(found.columns) == {"question", "result", "x"}
        assert (
            found.first == written(path) == [{"prompt": "2+3=", "answer": "5"}, {"prompt": 'a "b",\nc', "answer": "7"}]
        )
        hashes.add(found.sha256)
    assert len(hashes) == 1


def test_a_look_shows_rows_as_they_are_and_guesses_columns(tmp_path: Path) -> None:
    found = taken(lines(tmp_path, {"Question": "q", "final_answer": "a", "meta": {"k": 1}}), None)
    assert found.first == [{"Question": "q", "final_answer": "a", "meta": "{'k': 1}"}]
    assert guessed_map(found.columns) == {"prompt": "Question", "answer": "final_answer"}
    assert taken(parquet(tmp_path, q=["x"] * 9, a=[1] * 9), None).first == [{"q": "x", "a": "1"}] * 5
    assert guessed_map(["text", "conversations", "id", "response"]) == {"messages": "conversations", "id": "id"}
    assert guessed_map(["foo"]) == {}


def test_conversations_become_prompts_and_completions(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = lines(tmp_path, {"m": [{"role": "system", "content": "s"}, *talk]})
    found = taken(path, {"messages": "m"})
    assert (found.problems, found.system_message) == ([], "s")
    assert written(path) == [{"prompt": "q", "completion": "a"}]
    assert parsed_conversation([{"from": "human", "value": "q"}]).prompt == "q"
    assert parsed_conversation(json.dumps(talk)).completion == "a"
    second = lines(tmp_path, {"m": talk}, {"m": [{"role": "system", "content": "s"}, *talk]})
    (problem,) = taken(second, {"messages": "m"}).problems
    assert problem.startswith("line 2: its system message differs from that of line 1;")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("[", "is text that is not JSON"),
        (3, "is no list of messages"),
        ([], "is no list of messages"),
        (["x"], "has a message 1 that is no object"),
        ([{"role": "tool", "content": "x"}], "has a message 1 with the role 'tool'"),
        ([{"role": "user", "content": " "}], "has a message 1 without text"),
        (
            [{"role": "user", "content": "x"}] * 3,
            "holds messages of user, user, user; a prompt is one message of the user",
        ),
    ],
)
def test_a_conversation_that_is_no_single_question_is_refused(value: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parsed_conversation(value)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"q": 1, "a": 2}, 'line 2: column "question" is missing; found "q", "a"; choose the prompt column among them.'),
        ({"question": ""}, 'line 2: column "question" is empty; fill it in or remove the row.'),
        ({"question": 3, "result": 1}, 'line 2: column "question" holds int, not text; fill it in or remove the row.'),
        ({"question": "x", "result": None}, 'line 2: column "result" is empty; fill it in or remove the row.'),
        ({"question": "x", "result": [1]}, 'line 2: column "result" holds list, not text; fill it in or remove the row.'),
        ({"question": "x\x00", "result": 1}, "line 2: the character NUL stands in its text; remove it."),
        ({"question": "x\ud800", "result": 1}, "line 2: half a character (a lone surrogate) stands in its text; correct it."),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: object, problem: str) -> None:
    assert taken(lines(tmp_path, {"question": "x", "result": 1}, row)).problems == [problem]


def test_ids_are_kept_and_must_differ(tmp_path: Path) -> None:
    path = lines(tmp_path, {"q": "x", "n": 1}, {"q": "y", "n": 2}, {"q": "z", "n": 1})
    (problem,) = taken(path, {"prompt": "q", "id": "n"}).problems
    assert problem == "line 3: the id '1' is also that of line 1; give each row its own."
    assert written(path)[1] == {"prompt": "y", "id": "2"}


def test_a_column_that_a_table_lacks_is_told_with_those_it_has(tmp_path: Path) -> None:
    for path in (csv(tmp_path, "q,a\n1,2\n"), parquet(tmp_path, q=["1"], a=["2"])):
        assert taken(path).problems == ['The file has no column "question"; found "q", "a"; choose one of them.']


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b'{"question": "\xff\xfe"}\n', "line 1 is not JSON ("),
        (b"[" * 200_000, "The file is one JSON list; write one object on each line"),
        (b'{"question": ' + b"[" * 200_000 + b"\n", "line 1 is not JSON ("),
        (b'{"question": ' + b"9" * 10_000 + b"}\n", "line 1 is not JSON ("),
        (b'[{"question": "x"}]', "The file is one JSON list; write one object on each line"),
        (b'{"question": "' + b"x" * 4_100_000, "line 1 is longer than the limit of 4000000 bytes"),
        (b"\x1f\x8b\x08\x00garbage", "line 1 is not JSON ("),
        (b"\n", "line 1 is not JSON ("),
    ],
)
def test_hostile_lines_are_a_sentence(tmp_path: Path, raw: bytes, problem: str) -> None:
    (told, *_) = taken(lines(tmp_path, raw=raw)).problems
    assert told.startswith(problem)
    assert len(told) < 400


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"question,result\n1,2,3\n", "row 1 has 3 values but the header has 2; correct it or quote its commas."),
        (b'question,result\n"1,2\n', "row 1 is not CSV in UTF-8 ("),
        (b"question,result\n\xff,2\n", "row 1 is not CSV in UTF-8 ("),
        (b"question,result\na\x00,2\n", "row 1: the character NUL stands in its text; remove it."),
        (b"question,question\n1,2\n", "The file has two columns called 'question'; rename one."),
        (b"question,result\n", "The file has no rows; give it at least one prompt."),
        (b'question,result\n"' + b"x" * 4_100_000 + b'",1\n', "row 1 is not CSV in UTF-8 ("),
    ],
)
def test_hostile_tables_are_a_sentence(tmp_path: Path, text: bytes, problem: str) -> None:
    (told, *_) = taken(csv(tmp_path, text), max_bytes=10_000_000).problems
    assert told.startswith(problem)


def test_what_is_no_parquet_file_is_a_sentence(tmp_path: Path) -> None:
    sound = parquet(tmp_path, question=["x"], result=["y"]).read_bytes()
    for content in (b"PAR1garbagePAR1", sound[:-20], sound[:10] + b"\xff" * 40 + sound[50:]):
        (tmp_path / "p.parquet").write_bytes(content)
        for map in (None, QA):
            assert taken(tmp_path / "p.parquet", map).problems[0].startswith("The file is no sound Parquet file (")


def test_rows_and_bytes_have_limits(tmp_path: Path) -> None:
    path = lines(tmp_path, *[{"question": "x", "result": 1}] * 3)
    size = taken(path, max_rows=3).num_bytes
    assert taken(path, max_rows=2).problems == ["The file has more than 2 rows, which is the limit; split it."]
    assert taken(path, max_bytes=size).problems == []
    refused = f"The prompts of the file have more than {size - 1} bytes, which is the limit; split it."
    assert taken(path, max_bytes=size - 1).problems == [refused]
    packed = parquet(tmp_path, question=["x" * 1_000_000] * 1000, result=["1"] * 1000)
    assert packed.stat().st_size < 100_000
    assert taken(packed).problems == [
        "The prompts of the file have more than 100000 bytes, which is the limit; split it."
    ]


def test_twenty_problems_are_told_and_no_more(tmp_path: Path) -> None:
    assert len(taken(lines(tmp_path, *[{}] * 30)).problems) == 20


def test_a_map_names_one_column_of_the_prompt() -> None:
    for document, problem in (
        ({"answer": "a"}, "neither prompt nor messages is given"),
        ({"prompt": "a", "messages": "b"}, "prompt and messages are given"),
        ({"messages": "b", "completion": "c"}, "the assistant's message is the completion"),
    ):
        with pytest.raises(ValidationError) as caught:
            PromptMap.model_validate(document)
        assert problem in findings_of(caught.value, document)[0].message


def test_a_run_reads_an_upload_by_what_it_holds(tmp_path: Path, home: Path) -> None:
    path = lines(tmp_path, {"question": "2+3=", "result": 5})
    sha256 = taken(path).sha256
    reference = upload_reference(sha256)

    def refusal() -> str:
        with pytest.raises(RunError) as caught:
            read_prompts(reference, "prompts.path")
        return caught.value.message

    assert "is not among the uploads on this machine" in refusal()
    upload_folder(home).mkdir()
    path.with_name("target").rename(upload_path(home, sha256))
    (row,) = read_prompts(reference, "prompts.path", need_answer=True)
    assert row == PromptRow("2+3=", "5")
    assert row.place == f"line 1 of {reference!r}"
    with upload_path(home, sha256).open("a") as file:
        file.write("\n")
    assert "was changed on the disk since it was uploaded" in refusal()
    with pytest.raises(RunError, match="is no sha256; take the reference from the list"):
        read_prompts("upload:../../etc/passwd", "prompts.path")
