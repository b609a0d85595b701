"""`incipit ask` with the tiny pair: answers with their scores, as text and as JSON, and refusals in one sentence."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine.manifest import MANIFEST, Manifest
from engine.playground_spec import PlaygroundResult
from engine.staging import sealed_files
from engine.token_trace import read_trace
from incipit.cli import app
from incipit.commands.ask import _printable
from tests.engine.models import tiny_document, write_random_model

PROMPT = "k3 k0 c3 c2 c3 4 N13 |"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(tiny_document()))
    return path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["ask", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_a_checkpoint_and_the_teacher_answer_and_are_scored(spec: Path, tmp_path: Path) -> None:
    folder = tmp_path / "step-7"
    write_random_model(folder, 3)
    (folder / MANIFEST).write_text(Manifest(step=7, files=sealed_files(folder)).model_dump_json())
    traces = tmp_path / "answers.parquet"
    asked = (spec, PROMPT, "--of", folder, "--of", "teacher", "--max-tokens", 6, "--seed", 2)
    status, text = run(*asked, "--json", "--traces", traces)
    assert status == 0, text
    result = PlaygroundResult.model_validate_json(text[text.index("{") :])
    assert result.reader == "step-7 at step 7"
    assert [read_trace(traces, row).token_ids != [] for row in (0, 1)] == [True, True]
    status, text = run(*asked)
    assert status == 0
    assert "step-7 at step 7 ──" in text
    assert f"mean reverse KL {result.answers[1].mean_reverse_kl:.3f} nats per token, read by step-7 at step 7" in text
    assert result.answers[1].text in text


def test_what_is_wrong_is_one_sentence_and_a_status(spec: Path) -> None:
    status, text = run(spec, PROMPT, "--of", "base", "--samples", "5")
    assert (status, text) == (11, "num_samples is 5 but must be at most 4; lower it.\n")
    status, text = run(spec, PROMPT, "--of", "base", "--max-tokens", "256")
    assert status == 13
    assert "together more than the context of 256 tokens; shorten the prompt or lower max_completion_tokens." in text
    status, text = run(spec, PROMPT, "--of", "nowhere")
    assert status == 2
    assert "nowhere" in text


def test_text_of_a_model_moves_no_cursor() -> None:
    assert _printable("a\x1b[2Jb\r\nc\u202e\td") == "a�[2Jb�\nc�\td"
