"""Checkpoints of a LoRA run: a merged folder that transformers opens, the adapter that peft opens, and an exact resume."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine.adapter import with_adapter
from engine.adapter_spec import Lora
from engine.checkpoint import load_weights, restore_student, save_checkpoint, verify_checkpoint
from engine.errors import RunError
from engine.events import CheckpointSaved, Failed, Finished
from engine.exit_codes import DONE, OF_FAILURE
from engine.language_model import load_language_model
from engine.model_spec import ModelSpec
from engine.student import Student
from tests.engine.models import CPU, TINY, tiny_model, tiny_spec
from tests.engine.running import EngineProcess, events_of, quick_document, quick_spec, steps_of, train_here
from tests.engine.test_checkpoint import STATE, advance

LORA = Lora(rank=4)
BASE = ModelSpec(path="builtin:tiny/models/student-plan")
DOCUMENT = {"adapter": {"kind": "lora", "rank": 4}, "optimizer": {"learning_rate": 5e-3, "warmup_steps": 0}}


def student_with_adapter() -> Student:
    return Student(with_adapter(tiny_model(), LORA, BASE, 0), tiny_spec(**DOCUMENT))


def trained_student() -> Student:
    student = student_with_adapter()
    for step in range(3):
        advance(student, step)
    return student


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "attempts" / "1" / "checkpoints" / "step-3"
    save_checkpoint(folder, trained_student(), STATE, attempt=1)
    return folder


TOKENS = torch.randint(3, 80, (2, 9))


def test_transformers_opens_the_folder_with_the_adapter_merged(saved: Path) -> None:
    student = trained_student()
    opened = AutoModelForCausalLM.from_pretrained(saved)
    assert opened.dtype == torch.float32
    assert {name for name, _ in opened.named_parameters()} == {
        name for name, _ in tiny_model().module.named_parameters()
    }
    expected = student.model.module(input_ids=TOKENS).logits
    torch.testing.assert_close(opened(input_ids=TOKENS).logits, expected, rtol=0, atol=1e-4)
    untrained = tiny_model().module(input_ids=TOKENS).logits
    assert (expected - untrained).abs().max() > 0.1


def test_peft_opens_the_adapter_on_the_base(saved: Path) -> None:
    student = trained_student()
    opened = PeftModel.from_pretrained(tiny_model().module, saved / "adapter")
    assert torch.equal(opened(input_ids=TOKENS).logits, student.model.module(input_ids=TOKENS).logits)


def test_the_adapters_config_names_the_base_as_the_spec_does_and_no_path_of_this_machine(saved: Path) -> None:
    text = (saved / "adapter" / "adapter_config.json").read_text()
    config = json.loads(text)
    assert config["base_model_name_or_path"] == "builtin:tiny/models/student-plan"
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 32, 0.0)
    assert config["target_modules"] == sorted(config["target_modules"])
    assert str(TINY) not in text


def test_it_holds_safetensors_and_json_only_and_all_of_it_is_in_the_manifest(saved: Path) -> None:
    names = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert {Path(name).suffix for name in names} == {".safetensors", ".json"}
    manifest = verify_checkpoint(saved)
    assert {file.name for file in manifest.files} == names - {"manifest.json"}
    assert {"model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"} <= names


def test_the_optimizer_of_a_checkpoint_is_that_of_the_adapter(saved: Path) -> None:
    size = lambda name: (saved / name).stat().st_size  # noqa: E731
    assert size("trainer/optimizer.safetensors") < size("model.safetensors") / 2


def test_adapter_and_optimizer_come_back_bit_for_bit_and_go_on_alike(saved: Path) -> None:
    original, restored = trained_student(), student_with_adapter()
    restore_student(saved, restored)
    for step in (3, 4):
        assert advance(original, step) == advance(restored, step)
    for mine, theirs in zip(original.model.module.parameters(), restored.model.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_changed_base_is_refused(saved: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(TINY / "models" / "student-plan", tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] += 0.1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    spec = ModelSpec(path=str(base))
    other = Student(
        with_adapter(load_language_model(spec, "student", CPU, "float32"), LORA, spec, 0), tiny_spec(**DOCUMENT)
    )
    with pytest.raises(RunError, match=r"was trained on another base \(model\.norm\.weight differs\)"):
        load_weights(saved, other)


def test_a_checkpoint_without_an_adapter_is_refused_by_a_student_with_one(tmp_path: Path) -> None:
    whole = Student(tiny_model(), tiny_spec())
    advance(whole, 0)
    save_checkpoint(tmp_path / "step-1", whole, STATE, attempt=1)
    with pytest.raises(RunError) as caught:
        load_weights(tmp_path / "step-1", student_with_adapter())
    assert caught.value.failure == "bad_checkpoint"


def test_another_rank_is_refused(saved: Path) -> None:
    wider = Student(with_adapter(tiny_model(), Lora(rank=8), BASE, 0), tiny_spec(**DOCUMENT))
    with pytest.raises(RunError, match="does not fit the adapter"):
        load_weights(saved, wider)


def test_under_bfloat16_the_merged_folder_is_float32(tmp_path: Path) -> None:
    base = load_language_model(BASE, "student", CPU, "bfloat16", is_frozen=True)
    student = Student(with_adapter(base, LORA, BASE, 0), tiny_spec(**DOCUMENT))
    for step in range(3):
        advance(student, step)
    save_checkpoint(tmp_path / "step-3", student, STATE, attempt=1)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "step-3")
    assert opened.dtype == torch.float32
    merged = student.model.state_dict()
    for name, parameter in opened.named_parameters():
        assert torch.equal(parameter, merged[name].float()), name
    restored = Student(
        with_adapter(load_language_model(BASE, "student", CPU, "bfloat16", is_frozen=True), LORA, BASE, 0),
        tiny_spec(**DOCUMENT),
    )
    restore_student(tmp_path / "step-3", restored)
    assert advance(student, 3) == advance(restored, 3)


@pytest.mark.usefixtures("home")
def test_a_run_from_its_own_base_learns_nothing_and_its_best_checkpoint_is_reported(tmp_path: Path) -> None:
    """Student and teacher are one model: the divergence is 0, and then what AdamW makes of rounding."""
    teacher = {"path": "builtin:tiny/models/teacher"}
    spec = quick_spec(student=teacher, teacher=teacher, num_steps=2, **DOCUMENT)
    events = train_here(spec, tmp_path / "run")
    losses = [event.metrics["loss"] for event in events if event.kind == "step"]
    assert losses[0] == 0
    assert losses[1] < 1e-3
    assert isinstance(events[-1], Finished)


@pytest.mark.usefixtures("home")
def test_a_killed_run_resumes_to_the_adapter_of_one_that_was_not(tmp_path: Path) -> None:
    document = (
        quick_document(num_steps=7, checkpoints={"every_steps": 2, "keep_last": 3}, micro_batch_rollouts=3) | DOCUMENT
    )
    whole = EngineProcess(tmp_path / "whole", document)
    killed = EngineProcess(tmp_path / "killed", document)
    kill_at = random.randrange(2, 7)
    killed.wait_for(lambda events: len(steps_of(events)) >= kill_at)
    killed.send(signal.SIGKILL)
    assert killed.exit_code() == -signal.SIGKILL
    resumed = EngineProcess(tmp_path / "killed", document, "--attempt", "2", "--resume", "newest")
    assert whole.exit_code() == resumed.exit_code() == DONE, resumed.log
    folders = [next((tmp_path / name).glob("attempts/*/checkpoints/step-7")) for name in ("whole", "killed")]
    for file in (
        "model.safetensors",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "trainer/optimizer.safetensors",
    ):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), (file, kill_at)
    assert any(isinstance(event, CheckpointSaved) for event in events_of(tmp_path / "killed", 2))


@pytest.mark.usefixtures("home")
def test_a_layer_that_is_not_there_ends_a_run_with_a_finding(tmp_path: Path) -> None:
    adapter = {"kind": "lora", "target_modules": ["w_in"]}
    process = EngineProcess(tmp_path / "run", quick_document(adapter=adapter))
    assert process.exit_code() == OF_FAILURE["bad_model"]
    failed = events_of(tmp_path / "run")[-1]
    assert isinstance(failed, Failed)
    assert [finding.field for finding in failed.findings] == ["adapter.target_modules"]
