"""Models that cannot be used are refused with one sentence at their field."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.check import check
from engine.errors import RunError
from engine.language_model import load_language_model
from engine.model_spec import ModelSpec
from engine.pairing import pair_findings
from engine.rollout import RolloutRequest
from engine.sampler import Sampler
from engine.scoring import score_rollouts
from engine.setup import fit_lengths, load_data, load_models
from engine.student import Student
from tests.engine.models import CPU, TINY, random_model, tiny_document, tiny_model, tiny_spec, write_random_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the tiny student."""
    return Path(shutil.copytree(TINY / "models" / "student-plan", tmp_path / "model"))


def refusal(path: str) -> str:
    with pytest.raises(RunError) as caught:
        load_language_model(ModelSpec(path=path), "teacher", CPU, "float32")
    assert caught.value.failure == "bad_model"
    (finding,) = caught.value.findings
    assert (finding.field, finding.message) == ("teacher.path", caught.value.message)
    assert finding.message.startswith(f"teacher.path is {path!r}")
    assert "\n" not in finding.message
    return finding.message


def test_a_missing_folder_is_refused() -> None:
    assert refusal("/nowhere/model") == (
        "teacher.path is '/nowhere/model', but there is no such folder on this machine; correct the path."
    )


def test_a_path_that_climbs_out_is_refused() -> None:
    assert "leads out of its folder" in refusal("builtin:../../etc")


def test_a_path_that_no_file_system_takes_is_refused() -> None:
    refusal("/" + "a" * 300)


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"model_type": "unheard-of"}'])
def test_a_broken_config_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    refusal(str(folder))


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "without config.json" in refusal(str(folder))


def test_a_model_that_brings_code_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "own.Model"}}))
    assert "brings code of its own" in refusal(str(folder))


def test_a_python_file_beside_the_weights_is_refused(folder: Path) -> None:
    (folder / "modeling.py").write_text("raise SystemExit")
    assert "brings code of its own" in refusal(str(folder))


def test_weights_that_are_no_safetensors_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refusal(str(folder))


def test_torn_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    refusal(str(folder))


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refusal(str(folder))


def test_a_missing_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert "tokenizer" in refusal(str(folder))


def test_the_head_is_that_of_the_model() -> None:
    model = random_model(0)
    token_ids = torch.tensor([[1, 5, 6]])
    with torch.no_grad():
        expected = model.module(input_ids=token_ids).logits[0]
        torch.testing.assert_close(model.head.logits(model.hidden(token_ids)[0]), expected)


@pytest.mark.attack(9)
def test_different_vocabularies_are_an_error_and_different_endings_a_warning(folder: Path) -> None:
    student = tiny_model()
    assert pair_findings(student, tiny_model("teacher", "teacher")) == []
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["k0"], vocabulary["k1"] = vocabulary["k1"], vocabulary["k0"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    other = load_language_model(ModelSpec(path=str(folder)), "teacher", CPU, "float32")
    (finding,) = pair_findings(student, other)
    assert (finding.field, finding.severity) == ("teacher.path", "error")
    assert finding.message == (
        "student and teacher have different vocabularies (2 of 81 ids differ: 17 is 'k0' and 'k1', 18 is 'k1' and 'k0'); "
        "choose a teacher with the student's tokenizer."
    )


def test_two_sets_of_endings_are_a_warning(folder: Path) -> None:
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [2, 7]}))
    other = load_language_model(ModelSpec(path=str(folder)), "teacher", CPU, "float32")
    assert other.eos_token_ids == {2, 7}
    (finding,) = pair_findings(tiny_model(), other)
    assert finding.severity == "warning"
    assert "[2]" in finding.message
    assert "[2, 7]" in finding.message


def test_a_horizon_beyond_the_context_names_limit_and_fix() -> None:
    spec, student = tiny_spec(max_completion_tokens=248), tiny_model()
    with pytest.raises(RunError) as caught:
        fit_lengths(spec, load_data(spec, student.tokenizer), student, student)
    assert caught.value.message == (
        "max_completion_tokens is 248 but the student's context of 256 tokens leaves 247 after the longest prompt (9); "
        "lower max_completion_tokens or shorten the prompts."
    )
    assert caught.value.findings[0].field == "max_completion_tokens"


def test_a_preflight_of_a_sound_spec_finds_nothing_and_tells_facts() -> None:
    result = check(tiny_spec())
    assert result.findings == []
    assert result.facts["longest_prompt_tokens"] == 9
    assert result.facts["train_prompts"] == 4096
    assert result.facts["student_parameters"] == 112_000


def test_a_preflight_tells_all_problems_at_once(tmp_path: Path) -> None:
    broken = tmp_path / "prompts.jsonl"
    broken.write_text('{"prompt": "k0"}\n{"prompt": \n')
    document = tiny_document(prompts={"path": str(broken)}, teacher={"path": "builtin:../x"})
    found = {finding.field: finding.message for finding in check(tiny_spec(**document)).findings}
    assert found.keys() == {"prompts.path", "teacher.path"}
    assert "line 2" in found["prompts.path"]


def test_a_prompt_with_words_that_the_tokenizer_lacks_is_a_finding_at_its_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "hello world"}\n')
    fields = {finding.field for finding in check(tiny_spec(prompts={"path": str(path)})).findings}
    assert fields == {"prompts.path"}


def test_a_report_file_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    path.write_text('{"prompt": "hello world", "answer": "1"}\n')
    evaluation = tiny_document()["evaluation"]
    assert isinstance(evaluation, dict)
    spec = tiny_spec(evaluation=evaluation | {"report_path": str(path)})
    assert {finding.field for finding in check(spec).findings} == {"evaluation.report_path"}


def test_tokens_of_padding_rows_are_neither_sampled_nor_scored(tmp_path: Path) -> None:
    """Vocabularies are padded to different sizes within one family (151936 and 152064)."""
    write_random_model(tmp_path / "wide", 0, vocabulary=200)
    spec = tiny_spec(student={"path": str(tmp_path / "wide")}, max_completion_tokens=32)
    assert check(spec).findings == []
    student, teacher = load_models(spec, CPU, "float32")
    rollouts = Sampler(student, 0, 1.0).sample([RolloutRequest(0, [1, 5, 6], 8, 1)], 24)
    assert max(token for rollout in rollouts for token in rollout.completion_token_ids) < 81
    update = Student(student, spec).update(rollouts, teacher, 0)
    assert update.loss > 0
    assert update.logprob_gap < 1e-4
    columns = score_rollouts(student, teacher, rollouts, temperature=1.0, top_k=100, micro_batch=4)
    assert int(columns[0].candidate_ids.max()) < 81


def test_rounding_of_bfloat16_is_not_taken_for_a_model_that_cannot_decode(tmp_path: Path) -> None:
    """Its states are shown in float32, where rounding of this size would be a fault: no real model could be a teacher."""
    write_random_model(tmp_path, 3, hidden=64, layers=12)
    model = load_language_model(ModelSpec(path=str(tmp_path)), "teacher", CPU, "bfloat16")
    assert model.head.weight.dtype == torch.bfloat16
