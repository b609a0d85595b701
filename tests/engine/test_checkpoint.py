"""Checkpoints: plain Hugging Face folders that verify, or are refused."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.checkpoint import (
    TrainerState,
    load_trainer_state,
    load_weights,
    newest_checkpoint,
    restore_student,
    save_checkpoint,
    verify_checkpoint,
    without_lost_best,
)
from engine.errors import RunError
from engine.flops import FlopLedger
from engine.manifest import MANIFEST, Manifest, ManifestFile, spec_sha256
from engine.prefix_state import PrefixState
from engine.rollout import RolloutRequest
from engine.sampler import Sampler
from engine.spec import RunSpec
from engine.student import Student
from tests.engine.models import tiny_document, tiny_model, tiny_spec

TEACHER = tiny_model("teacher", "teacher")
STATE = TrainerState(
    step=3,
    prefix=PrefixState(max_completion_tokens=224),
    flops=FlopLedger(rollout=1e9, evaluation=3.0),
    executed_flops=2e9,
    training_seconds=1.5,
    evaluated_step=0,
    best_step=2,
    best_score=(0.5, -0.1),
    best_path="attempts/1/checkpoints/step-2",
)


def trained_student(num_steps: int = 3) -> Student:
    """A student with a history in its optimizer."""
    student = Student(tiny_model(), tiny_spec())
    for step in range(num_steps):
        advance(student, step)
    return student


def advance(student: Student, step: int) -> float:
    request = RolloutRequest(step, student.model.tokenizer("k3 k2 c2 c3 c3 5 N14 |")["input_ids"], 4, 1)
    return student.update(Sampler(student.model, 0, 1.0).sample([request], 6), TEACHER, step).loss


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "attempts" / "1" / "checkpoints" / "step-3"
    save_checkpoint(folder, trained_student(), STATE, attempt=1)
    return folder


def test_transformers_opens_a_checkpoint_with_the_weights_of_the_student(tmp_path: Path) -> None:
    student = trained_student()
    save_checkpoint(tmp_path / "step-3", student, STATE, attempt=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "step-3")
    assert model.dtype == torch.float32
    theirs = dict(model.named_parameters())
    for name, parameter in student.model.module.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "step-3")
    prompt = tokenizer("k3 k2 c2 c3 c3 5 N14 |", return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, do_sample=False, max_new_tokens=4)[0])
    assert "k3 k2 c2 c3 c3 5 N14 | m" in text


@pytest.mark.attack(4)
def test_a_checkpoint_holds_safetensors_and_json_only(saved: Path) -> None:
    assert {path.suffix for path in saved.rglob("*") if path.is_file()} == {".safetensors", ".json"}


def test_the_manifest_lists_every_file_with_its_hash(tmp_path: Path) -> None:
    folder = tmp_path / "step-3"
    manifest, digest = save_checkpoint(folder, trained_student(1), STATE, attempt=1)
    assert hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest() == digest
    assert verify_checkpoint(folder) == manifest
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {file.name for file in manifest.files} == names - {MANIFEST}
    for file in manifest.files:
        content = (folder / file.name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.num_bytes, file.sha256)
    assert manifest.num_bytes == sum(file.num_bytes for file in manifest.files)


def test_nothing_is_left_beside_a_checkpoint(saved: Path) -> None:
    assert [path.name for path in saved.parent.iterdir()] == ["step-3"]


def test_state_and_student_come_back_bit_for_bit_and_go_on_alike(saved: Path) -> None:
    assert load_trainer_state(saved) == STATE
    original, restored = trained_student(), Student(tiny_model(), tiny_spec())
    restore_student(saved, restored)
    for step in (3, 4):
        assert advance(original, step) == advance(restored, step)
    for mine, theirs in zip(original.model.module.parameters(), restored.model.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "trainer/optimizer.safetensors", "trainer/state.json", "config.json"]
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.attack(22)
def test_damage_to_any_file_is_refused(saved: Path, name: str, damage: str) -> None:
    path = saved / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        load_trainer_state(saved)
    assert caught.value.failure == "bad_checkpoint"
    assert name in caught.value.message


@pytest.mark.parametrize("content", [None, "", "{}", "[]"])
def test_a_folder_without_a_whole_manifest_is_refused(saved: Path, content: str | None) -> None:
    (saved / MANIFEST).unlink() if content is None else (saved / MANIFEST).write_text(content)
    with pytest.raises(RunError, match=r"has no readable manifest\.json"):
        verify_checkpoint(saved)


def test_a_manifest_cannot_name_files_outside_its_folder(saved: Path) -> None:
    manifest = Manifest.model_validate_json((saved / MANIFEST).read_text())
    outside = saved.parent / "outside.json"
    outside.write_text("{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    more = manifest.files[0].model_copy(update={"name": "../outside.json", "num_bytes": 2, "sha256": digest})
    (saved / MANIFEST).write_text(manifest.model_copy(update={"files": [more]}).model_dump_json())
    with pytest.raises(RunError) as caught:
        verify_checkpoint(saved)
    assert caught.value.failure == "bad_checkpoint"


def test_the_newest_whole_checkpoint_of_any_attempt_is_found(tmp_path: Path) -> None:
    student = trained_student(1)
    for attempt, step in ((1, 2), (1, 10), (2, 9), (2, 10)):
        save_checkpoint(tmp_path / f"attempts/{attempt}/checkpoints/step-{step}", student, STATE, attempt=1)
    assert newest_checkpoint(tmp_path) == tmp_path / "attempts/2/checkpoints/step-10"
    for attempt in (1, 2):
        (tmp_path / f"attempts/{attempt}/checkpoints/step-10/config.json").write_text("{}")
    assert newest_checkpoint(tmp_path) == tmp_path / "attempts/2/checkpoints/step-9"


def test_what_is_no_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for name in (
        "attempts/1/checkpoints/step-5.tmp-x",
        "attempts/old/checkpoints/step-4",
        "attempts/1/checkpoints/step-²",
    ):
        (tmp_path / name).mkdir(parents=True)
    assert newest_checkpoint(tmp_path) is None


def test_weights_of_another_student_are_refused(saved: Path) -> None:
    teacher = Student(tiny_model("teacher"), tiny_spec())
    with pytest.raises(RunError) as caught:
        load_weights(saved, teacher)
    assert caught.value.failure == "bad_checkpoint"


def test_damaged_weights_are_not_loaded(saved: Path) -> None:
    weights = bytearray((saved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (saved / "model.safetensors").write_bytes(weights)
    with pytest.raises(RunError, match=r"model\.safetensors has another content; use another checkpoint"):
        load_weights(saved, Student(tiny_model(), tiny_spec()))


def test_a_state_of_another_version_is_refused(saved: Path) -> None:
    text = '{"step": 3, "phase": "unheard of"}'
    (saved / "trainer" / "state.json").write_text(text)
    manifest = Manifest.model_validate_json((saved / MANIFEST).read_text())
    digest = hashlib.sha256(text.encode()).hexdigest()
    state = ManifestFile(name="trainer/state.json", num_bytes=len(text), sha256=digest)
    rest = [file for file in manifest.files if file.name != state.name]
    (saved / MANIFEST).write_text(manifest.model_copy(update={"files": [*rest, state]}).model_dump_json())
    with pytest.raises(RunError, match=r"no trainer/state\.json that this version reads"):
        load_trainer_state(saved)


@pytest.mark.attack(22)
def test_the_manifest_names_attempt_spec_and_versions_and_files_are_private(saved: Path) -> None:
    manifest = Manifest.model_validate_json((saved / MANIFEST).read_text())
    assert (manifest.step, manifest.attempt, manifest.spec_sha256) == (3, 1, spec_sha256(tiny_spec()))
    assert {"incipit", "torch", "transformers", "safetensors"} == manifest.versions.keys()
    modes = {path.stat().st_mode & 0o777 for path in saved.rglob("*") if path.is_file()}
    folders = {path.stat().st_mode & 0o777 for path in (saved, saved / "trainer")}
    assert (modes, folders) == ({0o600}, {0o700})


def test_a_spec_has_another_hash_when_it_states_something_else_and_only_then() -> None:
    stated = tiny_document() | {"prefix": {"kind": "constant", "tokens": 8}, "seed": 0}
    assert spec_sha256(tiny_spec()) == spec_sha256(RunSpec.model_validate(stated))
    others = [{"seed": 1}, {"prefix": {"kind": "full"}}, {"prefix": {"kind": "constant", "tokens": 9}}]
    hashes = {spec_sha256(tiny_spec(**change)) for change in ({}, *others)}
    assert len(hashes) == 4


def test_a_file_that_is_not_in_the_manifest_is_refused(saved: Path) -> None:
    (saved / "more.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match=r"'more\.safetensors' is not in its manifest"):
        verify_checkpoint(saved)


@pytest.mark.attack(3)
def test_a_link_in_place_of_a_file_is_refused(saved: Path) -> None:
    (saved / "config.json").rename(saved.parent / "config.json")
    (saved / "config.json").symlink_to(saved.parent / "config.json")
    with pytest.raises(RunError, match=r"lies outside it|cannot be read"):
        verify_checkpoint(saved)


@pytest.mark.attack(9)
def test_a_student_with_another_tokenizer_does_not_go_on(saved: Path) -> None:
    student = Student(tiny_model(), tiny_spec())
    student.model.tokenizer.add_tokens(["a new word"])
    with pytest.raises(RunError, match=r"another tokenizer \(1 tokens differ, 'a new word' is one\)") as caught:
        restore_student(saved, student)
    assert caught.value.failure == "bad_checkpoint"


def test_writing_again_replaces_the_folder(saved: Path) -> None:
    student = trained_student(1)
    save_checkpoint(saved, student, STATE, attempt=1)
    weights = load_file(saved / "model.safetensors")
    assert torch.equal(weights["model.norm.weight"], student.model.module.get_decoder().norm.weight)
    assert [path.name for path in saved.parent.iterdir()] == ["step-3"]


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        save_checkpoint(tmp_path / "checkpoints" / "step-1", trained_student(1), STATE, attempt=1)
    assert os.listdir(tmp_path) == ["checkpoints"]


def test_a_state_of_before_counted_evaluations_has_counted_its_last_one(tmp_path: Path) -> None:
    old = STATE.model_copy(update={"evaluated_step": 3}).model_dump(mode="json", exclude={"counted_step"})
    state = without_lost_best(tmp_path, TrainerState.model_validate(old))
    assert (state.best_step, state.evaluated_step, state.counted_step) == (None, 0, 3)
