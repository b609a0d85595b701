"""A LoRA checkpoint of a small Llama whose tokenizer llama.cpp knows, and what asks for its export."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engine.adapter import with_adapter
from engine.adapter_spec import Lora
from engine.checkpoint import save_checkpoint
from engine.export_spec import CardFacts, ExportSpec
from engine.language_model import LanguageModel, load_language_model
from engine.model_spec import ModelSpec
from engine.student import Student
from tests.engine.models import CPU, tiny_spec
from tests.engine.test_checkpoint import STATE

TOKENS = torch.tensor([[1, 260, 270, 285, 300, 299, 5, 290]])
LORA = {"kind": "lora", "rank": 4}


def write_base(folder: Path) -> None:
    """A random Llama with a tokenizer of pairs and bytes, as Llama 2 has one: it fits no list of known vocabularies."""
    torch.manual_seed(0)
    alphabet = [*"▁abcdefghijklmnopqrstuvwxyz0123456789.,+=", "th", "▁a"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *alphabet]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    pairs = Tokenizer(
        models.BPE(vocabulary, [("t", "h"), ("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    pairs.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pairs.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=pairs, **special).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def student_with_adapter(base: Path) -> Student:
    """A student whose adapter changes its answers: B is no longer zero."""
    named = ModelSpec(path=str(base))
    spec = tiny_spec(adapter=LORA, student={"path": str(base)})
    model: LanguageModel = with_adapter(load_language_model(named, "student", CPU, "float32"), Lora(rank=4), named, 0)
    assert model.adapter is not None
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.adapter.tensors().items():
            if "lora_B" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
    return Student(model, spec)


def written_student(base: Path) -> Student:
    """Its base is written into this folder."""
    write_base(base)
    return student_with_adapter(base)


def contents_of(folder: Path) -> dict[str, bytes]:
    """Every file of a checkpoint but its manifest."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def saved_checkpoint(student: Student, run_folder: Path) -> Path:
    folder = run_folder / "attempts" / "1" / "checkpoints" / "step-3"
    save_checkpoint(folder, student, STATE, attempt=1)
    return folder


def asked(student: Student, folder: Path, choice: dict[str, Any]) -> ExportSpec:
    facts = CardFacts(
        run_id="0193", run_name="prefix 8", experiment_name="How short?", step=3, spec=student.spec, num_prompts=100,
        metrics={"accuracy": 0.75, "reverse_kl": 0.125}, base_metrics={"accuracy": 0.25, "reverse_kl": 1.5}, training_flops=1.5e12,
    )  # fmt: skip
    document = {
        "id": "export-1",
        "folder": str(folder),
        "manifest_sha256": None,
        "title": "prefix-8-step-3",
        "export": choice,
    }
    return ExportSpec.model_validate(document | {"card": facts})
