"""Small models of many architectures, written at random; they share the tiny pair's tokenizer."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.engine.models import TINY, WORDS

# Names that most architectures know; those that do not ignore them.
_COMMON: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_NUM_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_GPT2_NAMES = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 128}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_WINDOW = 8  # shorter than the texts of the tests

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": _WINDOW},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": _WINDOW},
    "gemma3_text": {"head_dim": 8, "sliding_window": _WINDOW},
    "phi3": {},
    "gpt2": _GPT2_NAMES,
    "gptj": _GPT2_NAMES | {"rotary_dim": 4},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": _WINDOW},
    "gpt_neox": {},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 16, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "falcon": {},
    "olmo2": {},
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.25},
    "mixtral": _EXPERTS,
    "qwen3_moe": _EXPERTS | {"head_dim": 8},
    "gpt_oss": _EXPERTS | {"head_dim": 8, "sliding_window": _WINDOW},
}
STATEFUL: dict[str, dict[str, Any]] = {"mamba": {"state_size": 4}, "rwkv": {}}
"""Architectures without a key/value cache."""


def write_family(folder: Path, family: str, seed: int = 0, num_layers: int = 2) -> None:
    """A model of this architecture as a Hugging Face folder."""
    torch.manual_seed(seed)
    values = _COMMON | (FAMILIES.get(family) or STATEFUL.get(family, {}))
    values |= {name: num_layers for name in _NUM_LAYERS if name in values}
    if family == "gpt_neo":  # global and local in turn, as by default
        values["attention_types"] = [[["global", "local"], num_layers // 2], [["global"], num_layers % 2]]
    config = AutoConfig.for_model(family, **values)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY / "models" / "teacher").save_pretrained(folder)
