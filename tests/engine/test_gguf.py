"""A GGUF file is opened as the float model that it was made from, trains, and leaves as an ordinary folder."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.check import check
from engine.errors import RunError
from engine.language_model import LanguageModel, load_language_model
from engine.model_spec import ModelSpec
from tests.engine.gguf_file import write_gguf
from tests.engine.models import CPU
from tests.engine.running import quick_spec, steps_of, train_here


def opened(**spec: str) -> LanguageModel:
    return load_language_model(ModelSpec(**spec), "student", CPU, "float32")


@torch.no_grad()
def test_the_model_is_the_one_that_the_file_was_made_from(tmp_path: Path) -> None:
    original = write_gguf(tmp_path / "model.gguf")
    model = opened(path=str(tmp_path / "model.gguf"))
    token_ids = torch.tensor([[257, 64, 65, 66, 67]])
    expected = original(input_ids=token_ids).logits
    torch.testing.assert_close(model.module(input_ids=token_ids).logits, expected, rtol=0, atol=1e-5)
    assert model.eos_token_ids == {258}
    assert model.tokenizer.decode(model.tokenizer("one a")["input_ids"]) == "one a"
    assert model.context_tokens == 256
    same = opened(path=str(tmp_path), gguf_file="model.gguf")
    torch.testing.assert_close(same.module(input_ids=token_ids).logits, expected, rtol=0, atol=1e-5)


def test_a_student_from_gguf_trains_resumes_and_is_saved_as_a_plain_folder(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{i} + 1 =", "answer": str(i + 1)}) + "\n" for i in range(8)))
    spec = quick_spec(
        student={"path": str(tmp_path / "model.gguf")},
        teacher={"path": str(tmp_path / "model.gguf")},
        prompts={"path": str(prompts), "template": "chat"},
        evaluation={"path": str(prompts), "num_prompts": 2, "num_sampled": 1, "every_steps": 1000},
        num_steps=2,
        checkpoints={"every_steps": 1},
    )
    assert check(spec).findings == []
    assert steps_of(train_here(spec, tmp_path / "run")) == [1, 2]
    saved = tmp_path / "run" / "attempts" / "1" / "checkpoints"
    assert AutoModelForCausalLM.from_pretrained(saved / "step-2").config.model_type == "llama"
    assert steps_of(train_here(spec, tmp_path / "run", attempt=2, resume=saved / "step-1")) == [2]


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"path": "/nowhere/model.gguf"}, "but there is no such file on this machine; correct the path."),
        ({"path": "{folder}", "gguf_file": "b.gguf"}, "a folder without b.gguf; correct student.gguf_file."),
        ({"path": "{folder}/torn.gguf"}, "but its tokenizer cannot be opened: "),
        ({"path": "{folder}/partial.gguf"}, "but it lacks 1 tensors, model.layers.1.mlp.up_proj.weight first; get a complete copy."),
    ],
)  # fmt: skip
def test_a_file_that_is_no_model_is_refused_in_a_sentence(spec: dict[str, str], problem: str, tmp_path: Path) -> None:
    (tmp_path / "torn.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    write_gguf(tmp_path / "partial.gguf", without="blk.1.ffn_up.weight")
    path = spec["path"].format(folder=tmp_path)
    with pytest.raises(RunError) as caught:
        opened(**{**spec, "path": path})
    assert caught.value.failure == "bad_model"
    assert caught.value.message.startswith(f"student.path is {path!r}, {problem}")
    assert "\n" not in caught.value.message
