"""`incipit evaluate` on a model that reads bytes: tasks, files, pairs of results and refusals."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine.estimators import mcnemar
from incipit.cli import app
from tests.engine.byte_model import write_byte_model

ROWS = Path(__file__).parent.parent / "engine" / "task_rows"


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    (folder / "test.jsonl").write_bytes((ROWS / "gsm8k.jsonl").read_bytes())
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_a_model_is_evaluated_on_a_task_and_two_of_them_are_paired(tmp_path: Path, task_folder: Path) -> None:
    files = []
    for seed in (1, 2):
        model = write_byte_model(tmp_path / f"model-{seed}", seed)
        out = tmp_path / f"{seed}.json"
        status, text = run(
            model, "--task", "gsm8k", "--folder", task_folder, "--max-tokens", 8, "--samples", 2, "--sampling",
            "qwen3_thinking", "--min-p", 0.1, "--out", out, "--json",
        )  # fmt: skip
        assert status == 0, text
        files.append(out)
        found = json.loads(out.read_text())
        assert json.loads(text[text.index("{\n") :]) == found
        assert found["source"] == f"task:gsm8k?folder={task_folder}"
        assert found["scorer"]["kind"] == "final_number"
        assert found["answer_sampling"] == {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1}
        assert found["verdicts"]["samples_per_problem"] == 2
        assert found["num_prompts"] == len(found["verdicts"]["right"]) == 5
        assert found["accuracy_low"] <= found["metrics"]["accuracy"] + 1e-12
        assert found["metrics"]["accuracy"] <= found["accuracy_high"]
    status, text = run("--compare", *files)
    assert status == 0, text
    assert "on 5 problems" in text
    assert "McNemar p = 1." in text


def test_pairs_are_counted_problem_by_problem(tmp_path: Path, task_folder: Path) -> None:
    model, out = write_byte_model(tmp_path / "model", 1), tmp_path / "a.json"
    assert run(model, "--task", "gsm8k", "--folder", task_folder, "--max-tokens", 2, "--out", out)[0] == 0
    found = json.loads(out.read_text())
    first, second = "10111", "00001"
    for name, right in (("a", first), ("b", second)):
        changed = found | {"verdicts": found["verdicts"] | {"right": right}}
        (tmp_path / f"{name}.json").write_text(json.dumps(changed))
    pair = json.loads(run("--compare", out, tmp_path / "b.json", "--json")[1])
    assert (pair["only_first"], pair["only_second"], pair["difference"]) == (3, 0, pytest.approx(-0.6))
    expected = mcnemar([digit == "1" for digit in first], [digit == "1" for digit in second])
    assert pair["mcnemar_p"] == pytest.approx(expected) == pytest.approx(0.25)
    other = found | {"verdicts": found["verdicts"] | {"problems": "other"}}
    (tmp_path / "c.json").write_text(json.dumps(other))
    status, text = run("--compare", out, tmp_path / "c.json")
    assert status == 2
    assert "are not the same problems, so they cannot be paired" in text


def test_a_table_says_how_long_completions_could_be(tmp_path: Path, task_folder: Path) -> None:
    model = write_byte_model(tmp_path / "model", 1)
    status, text = run(model, "--task", task_folder / "p.jsonl", "--max-tokens", 4)
    assert status == 2
    assert "there is no such file on this machine" in text
    (task_folder / "p.jsonl").write_text('{"prompt": "2 + 2 =", "answer": "4"}\n')
    status, text = run(model, "--task", task_folder / "p.jsonl", "--max-tokens", 4, "--scorer", "exact_match")
    assert status == 0, text
    assert "of at most 4 tokens" in text
    assert "accuracy" in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_where_a_result_goes_is_looked_at_before_and_none_is_lost(tmp_path: Path, task_folder: Path) -> None:
    model = write_byte_model(tmp_path / "model", 1)
    asked = ("--task", "gsm8k", "--folder", task_folder, "--max-tokens", 2, "--out")
    status, text = run("./absent", *asked, task_folder / "test.jsonl" / "a.json")
    assert status == 2
    assert text.startswith("The result could not be written to ")
    assert text.count("\n") == 1
    out = tmp_path / "results" / "a.json"
    status, text = run("./absent", *asked, out)
    assert status == 2
    assert not out.exists(), "a refused evaluation leaves no file"
    status, text = run(model, *asked, out)
    assert status == 0, text
    assert json.loads(out.read_text())["num_prompts"] == 5
    status, text = run(model, *asked, "/dev/full")
    assert status == 2
    assert "The result cannot be written to /dev/full (No space left on device)" in text
    assert '"verdicts"' in text


def test_without_a_limit_all_of_a_file_is_asked_and_too_much_is_refused_before(tmp_path: Path) -> None:
    model, file, out = write_byte_model(tmp_path / "model", 1), tmp_path / "p.jsonl", tmp_path / "a.json"
    line = '{"prompt": "2", "answer": "4"}\n'
    file.write_text(line * 1003)
    asked = (model, "--task", file, "--max-tokens", 1, "--scorer", "exact_match", "--out", out)
    assert run(*asked)[0] == 0
    assert json.loads(out.read_text())["num_prompts"] == 1003
    assert run(*asked, "--limit", 7)[0] == 0
    assert json.loads(out.read_text())["num_prompts"] == 7
    file.write_text(line * 20_001)
    status, text = run(*asked)
    assert status == 2
    assert "20,001 problems of" in text
    assert "keeps the verdicts of at most 20,000; set a limit." in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "A model and --task are needed"),
        (["m"], "A model and --task are needed"),
        (["m", "--task", "gsm8k", "--sampling", "hot"], "knows greedy, opd, qwen3_thinking"),
        (["m", "--task", "file.jsonl", "--revision", "x"], "are for ready tasks"),
        (["m", "--task", "task:nothing"], "there is no task 'nothing'"),
        (["m", "--task", "gsm8k", "--samples", "-1"], "must be at least 0"),
        (["m", "--task", "file.jsonl", "--scorer", "{"], "--scorer is not JSON"),
        (["m", "--task", "file.jsonl", "--scorer", "guess"], "kind must be one of"),
        (["./absent", "--task", "gsm8k"], "there is no such folder on this machine"),
        (["--compare", "absent.json", "absent.json"], "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str) -> None:
    status, text = run(*arguments)
    assert status == 2
    assert sentence in text
    assert "Traceback" not in text


def test_a_context_that_is_too_short_is_named(tmp_path: Path, task_folder: Path) -> None:
    model = write_byte_model(tmp_path / "model", 1, context=256)
    status, text = run(model, "--task", "gsm8k", "--folder", task_folder)
    assert status == 2
    assert "max_completion_tokens is 1024 but the model's context of 256 tokens leaves" in text
