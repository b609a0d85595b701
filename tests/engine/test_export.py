"""Exports as transformers and llama.cpp's own converter see them: the same logits as base and adapter, and clear refusals."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.errors import RunError
from engine.export import export
from engine.export_spec import ExportResult
from engine.manifest import Manifest, ManifestFile, hashed
from engine.model_card import model_card
from engine.staging import sealed_files
from engine.student import Student
from tests.engine.exporting import TOKENS, asked, saved_checkpoint, written_student
from tests.engine.models import tiny_model, tiny_spec


@dataclass
class Told:
    """What an export reported."""

    shares: list[float]
    words: list[str]

    def __call__(self, share: float, words: str) -> None:
        self.shares.append(share)
        self.words.append(words)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return written_student(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def saved(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_checkpoint(student, tmp_path_factory.mktemp("run"))


def made(student: Student, saved: Path, out: Path, **choice: Any) -> ExportResult:
    return export(asked(student, saved, choice), Told([], []), out)


def logits_of(student: Student) -> torch.Tensor:
    """Of base and adapter apart, as they were trained."""
    with torch.no_grad():
        logits: torch.Tensor = student.model.module(input_ids=TOKENS).logits
    return logits


def exported_logits(folder: Path, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder, **options)(input_ids=TOKENS).logits
    return logits.float()


def test_a_merged_folder_answers_as_base_and_adapter_do(student: Student, saved: Path, tmp_path: Path) -> None:
    told = Told([], [])
    result = export(asked(student, saved, {"kind": "merged"}), told, tmp_path / "x" / "1")
    # W + BA in one product instead of two: float32 rounding of sums of 64 terms near 1.
    torch.testing.assert_close(exported_logits(tmp_path / "x" / "1"), logits_of(student), rtol=0, atol=2e-5)
    with student.model.adapter.left_out():  # type: ignore[union-attr]
        assert (logits_of(student) - exported_logits(tmp_path / "x" / "1")).abs().max() > 0.1, (
            "the adapter does something"
        )
    names = {file.name for file in result.files}
    assert names == {path.name for path in (tmp_path / "x" / "1").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not {"trainer", "adapter", "manifest.json", "adapter_config.json"} & names
    assert "rank 4 is merged" in result.notes[0]
    assert told.shares == sorted(told.shares)
    assert told.shares[-1] == 1.0
    assert any("verifying" in words for words in told.words)
    assert result.files == [manifest_file(tmp_path / "x" / "1" / file.name) for file in result.files]
    assert list((tmp_path / "x").iterdir()) == [tmp_path / "x" / "1"], "nothing half-made stays"


def manifest_file(path: Path) -> ManifestFile:
    with path.open("rb") as file:
        return ManifestFile(name=path.name, num_bytes=path.stat().st_size, sha256=hashed(file.fileno()))


def with_named_templates(saved: Path, to: Path) -> Path:
    """The checkpoint of a student whose tokenizer has a chat template beside the usual one."""
    folder = copied(saved, to)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(folder)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(Manifest(step=3, files=sealed_files(folder)).model_dump_json())
    return folder


def test_named_chat_templates_come_along(student: Student, saved: Path, tmp_path: Path) -> None:
    named = with_named_templates(saved, tmp_path / "named")
    result = made(student, named, tmp_path / "out", kind="merged")
    templates = AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert templates == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    assert "additional_chat_templates/tool_use.jinja" in {file.name for file in result.files}
    assert not [file.name for file in result.files if file.name.startswith(("trainer/", "adapter/"))]


def test_the_converter_sees_named_chat_templates(
    student: Student, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "convert_hf_to_gguf.py"
    program.write_text(
        "import pathlib, sys\n"
        "seen = pathlib.Path(sys.argv[1], 'additional_chat_templates', 'tool_use.jinja').read_text()\n"
        "pathlib.Path(sys.argv[3]).write_text(seen)\n"
    )
    monkeypatch.setenv("INCIPIT_GGUF_CONVERTER", str(program))
    named = with_named_templates(saved, tmp_path / "named")
    (file,) = made(student, named, tmp_path / "out", kind="gguf").files
    assert (tmp_path / "out" / file.name).read_text() == "{{ tools }}"


def test_of_a_student_without_lora_the_files_are_the_checkpoint_s_own_and_it_says_so(tmp_path: Path) -> None:
    whole = Student(tiny_model(), tiny_spec())
    saved = saved_checkpoint(whole, tmp_path)
    result = made(whole, saved, tmp_path / "out", kind="merged")
    assert "nothing had to be merged" in result.notes[0]
    for file in result.files:
        if file.name != "README.md":
            assert (tmp_path / "out" / file.name).read_bytes() == (saved / file.name).read_bytes()


@pytest.mark.parametrize(("dtype", "relative"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_a_cast_folder_is_half_as_large_and_each_weight_rounded_once(
    student: Student, saved: Path, tmp_path: Path, dtype: str, relative: float
) -> None:
    result = made(student, saved, tmp_path / "out", kind="merged", dtype=dtype)
    before, after = load_file(saved / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == getattr(torch, dtype)
        torch.testing.assert_close(after[name].float(), tensor, rtol=relative, atol=2**-24)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == getattr(torch, dtype)
    assert f"cast to {dtype}" in result.notes[1]


def test_weights_beyond_float16_are_refused_and_leave_nothing(student: Student, saved: Path, tmp_path: Path) -> None:
    large = copied(saved, tmp_path / "large")
    weights = load_file(large / "model.safetensors")
    weights["model.norm.weight"][:2] = 1e6
    save_file(weights, large / "model.safetensors", metadata={"format": "pt"})
    restated(large)
    with pytest.raises(RunError, match=r"2 weights lie beyond its largest number, 65,504; choose bfloat16"):
        made(student, large, tmp_path / "out" / "1", kind="merged", dtype="float16")
    assert list((tmp_path / "out").iterdir()) == []


def copied(saved: Path, to: Path) -> Path:
    shutil.copytree(saved, to)
    return to


def restated(folder: Path) -> None:
    """Write the manifest anew, as of a checkpoint that was saved like this."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = [
        manifest_file(folder / one["name"]).model_dump() | {"name": one["name"]} for one in manifest["files"]
    ]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_damaged_checkpoint_is_not_exported(student: Student, saved: Path, tmp_path: Path) -> None:
    damaged = copied(saved, tmp_path / "damaged")
    content = bytearray((damaged / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(content)
    with pytest.raises(RunError, match=r"model.safetensors has another content; export another one"):
        made(student, damaged, tmp_path / "out", kind="merged")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_goes_away_is_said_to_have_gone(student: Student, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not there any more") as before:
        made(student, tmp_path / "nowhere", tmp_path / "out", kind="merged")
    assert before.value.findings[0].field == "checkpoint_id"
    going = copied(saved, tmp_path / "going")

    def remove(_share: float, words: str) -> None:
        if words.startswith("writing"):
            shutil.rmtree(going, ignore_errors=True)

    with pytest.raises(RunError, match="removed while it was exported; pin one"):
        export(asked(student, going, {"kind": "merged"}), remove, tmp_path / "out" / "1")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_is_too_small_is_named_before_anything_is_written(
    student: Student, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10 * 2**20))
    with pytest.raises(RunError, match=r"10 MiB are free .* needs 2\d\d MiB .* free some") as error:
        made(student, saved, tmp_path / "out", kind="merged")
    assert error.value.failure == "disk_full"
    assert not (tmp_path / "out").exists()


def test_the_card_tells_history_metrics_and_licence_and_no_path_of_this_machine(
    student: Student, saved: Path, tmp_path: Path
) -> None:
    made(student, saved, tmp_path / "out", kind="merged")
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("prefix 8", "step 3", "LoRA of rank 4", "| accuracy | 0.25 | 0.75 |", "No licence is stated", "0193"):
        assert words in card
    assert str(tmp_path.parent) not in card
    assert "base_model" not in card, "the base is a folder of this machine"


def test_a_card_has_a_sound_header_and_no_markup_of_people(student: Student, saved: Path) -> None:
    spec = tiny_spec(
        student={"path": "lab/small-1b", "revision": "main"},
        teacher={"path": "home:models/secret/teacher"},
        prompts={"path": "/mnt/data/questions.jsonl"},
        teacher_backend={"kind": "vllm_servers", "servers": [{"address": "http://10.0.0.7:8000"}]},
    )
    facts = asked(student, saved, {"kind": "merged"}).card
    hostile = "x\n---\n<script>alert(1)</script> [a](http://b) `c` | d"
    card = model_card(facts.model_copy(update={"spec": spec, "run_name": hostile, "metrics": {}}), [])
    header = yaml.safe_load(card.split("---")[1])
    assert (header["base_model"], header["library_name"]) == ("lab/small-1b", "transformers")
    for words in ("<script", "10.0.0.7", "/mnt", "secret", "](http", "\n---\n<"):
        assert words not in card
    assert "questions.jsonl" in card
    assert "not evaluated at full length" in card


_FULL = pytest.mark.full  # each starts the converter, which takes 5 s to import what it needs


@pytest.mark.parametrize(
    ("file_type", "tolerance"),
    [
        ("f32", 3e-6),
        pytest.param("f16", 3e-3, marks=_FULL),
        pytest.param("bf16", 3e-2, marks=_FULL),
        pytest.param("q8_0", 6e-2, marks=_FULL),
    ],
)
def test_a_gguf_file_of_llama_cpp_s_converter_answers_as_base_and_adapter_do(
    student: Student, saved: Path, tmp_path: Path, file_type: str, tolerance: float
) -> None:
    """Of the largest logit, 6.4. Measured: 1.1e-6, 1.1e-3, 1.5e-2 and 2.9e-2."""
    result = made(student, saved, tmp_path / "x" / "1", kind="gguf", file_type=file_type)
    (file,) = result.files
    assert file.name == f"prefix-8-step-3-{file_type}.gguf"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [file.name]
    read = exported_logits(tmp_path / "x" / "1", gguf_file=file.name)
    expected = logits_of(student)
    assert (read - expected).abs().max() < tolerance * expected.abs().max()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "x" / "1", gguf_file=file.name)
    text = "the a 12+3=15 ü"
    assert tokenizer(text)["input_ids"] == student.model.tokenizer(text)["input_ids"]


def test_a_tokenizer_that_llama_cpp_does_not_know_is_named(student: Student, saved: Path, tmp_path: Path) -> None:
    strange = copied(saved, tmp_path / "strange")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path("experiments/tiny/models/teacher") / name, strange / name)
    restated(strange)
    with pytest.raises(RunError, match=r"tokenizer is none that llama.cpp knows .*; export a merged folder"):
        made(student, strange, tmp_path / "out" / "1", kind="gguf")
    assert list((tmp_path / "out").iterdir()) == []


@_FULL
def test_an_architecture_that_the_converter_does_not_know_is_named(
    student: Student, saved: Path, tmp_path: Path
) -> None:
    strange = copied(saved, tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text()) | {"architectures": ["ElmForCausalLM"]}
    (strange / "config.json").write_text(json.dumps(config))
    restated(strange)
    with pytest.raises(RunError, match=r"is a ElmForCausalLM, which llama.cpp's converter does not know"):
        made(student, strange, tmp_path / "out" / "1", kind="gguf")


def test_a_worker_without_the_converter_says_how_to_get_it(
    student: Student, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INCIPIT_GGUF_CONVERTER", str(tmp_path / "convert_hf_to_gguf.py"))
    with pytest.raises(RunError, match=r"has no .*convert_hf_to_gguf.py.*make gguf.*INCIPIT_GGUF_CONVERTER"):
        made(student, saved, tmp_path / "out", kind="gguf")
