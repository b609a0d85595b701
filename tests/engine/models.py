"""Models for tests: the shipped tiny pair, and random Llamas in float64 that sample with high entropy."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from engine.flops import ModelShape
from engine.language_model import LanguageModel, load_language_model
from engine.locations import resolve
from engine.memory import Model
from engine.model_spec import ModelSpec
from engine.spec import RunSpec

TINY = Path(resolve("builtin:tiny"))
CPU = torch.device("cpu")
MEDIUM = Model(
    ModelShape.from_config(
        {
            "model_type": "llama",
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "intermediate_size": 1408,
            "vocab_size": 32_000,
        }
    ),
    40_000_000,
)
"""A Llama that estimates are made for; it has no weights."""
WORDS = 81  # vocabulary of the tiny pair's tokenizer, which the random models share


def tiny_document(**changes: object) -> dict[str, object]:
    """A spec of the tiny pair as plain JSON values: the student with the wrong plan, prefix 8."""
    return {
        "name": "prefix 8",
        "student": {"path": "builtin:tiny/models/student-plan"},
        "teacher": {"path": "builtin:tiny/models/teacher"},
        "prompts": {"path": "builtin:tiny/data/train.jsonl"},
        "max_completion_tokens": 224,
        "prefix": {"kind": "constant", "tokens": 8},
        "num_steps": 40,
        "prompts_per_step": 16,
        "optimizer": {"learning_rate": 5e-4, "warmup_steps": 5, "eps": 1e-4},
        "evaluation": {
            "path": "builtin:tiny/data/dev.jsonl",
            "num_prompts": 4,
            "num_sampled": 2,
            "every_steps": 1000,
            "scorer": {"kind": "after_marker", "marker": "#"},
        },
        "traces": {"num_rollouts": 1},
    } | changes


def tiny_spec(**changes: object) -> RunSpec:
    """The same, validated."""
    return RunSpec.model_validate(tiny_document(**changes))


def tiny_model(name: str = "student-plan", field: Literal["student", "teacher"] = "student") -> LanguageModel:
    """A model of the shipped pair, freshly loaded in float32."""
    return load_language_model(ModelSpec(path=f"builtin:tiny/models/{name}"), field, CPU, "float32")


def write_random_model(
    folder: Path, seed: int, *, hidden: int = 16, vocabulary: int = WORDS, context: int = 256, layers: int = 2
) -> None:
    """A small Llama with random weights as a Hugging Face folder; large weights make its distributions differ by context."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY / "models" / "teacher").save_pretrained(folder)


def random_model(seed: int = 0, *, hidden: int = 16, vocabulary: int = WORDS) -> LanguageModel:
    """A random Llama in float64. Shared between tests: do not train it, see `fresh_random_model`."""
    return _random_model(seed, hidden, vocabulary)


def fresh_random_model(seed: int = 0, *, hidden: int = 16, vocabulary: int = WORDS) -> LanguageModel:
    """The same, loaded anew, to be trained."""
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(Path(folder), seed, hidden=hidden, vocabulary=vocabulary)
        model = load_language_model(ModelSpec(path=folder), "student", CPU, "float32")
    model.module.double()
    return model


_random_model = cache(lambda seed, hidden, vocabulary: fresh_random_model(seed, hidden=hidden, vocabulary=vocabulary))
