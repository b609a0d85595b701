"""Shapes of published models, with which cost is counted or measured on random weights: what their config.json says, no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151_936,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _qwen3(hidden: int, layers: int, heads: int, intermediate: int, *, tied: bool) -> dict[str, Any]:
    return _QWEN3 | {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "tie_word_embeddings": tied,
    }


SHAPES = {
    "Qwen3-0.6B": _qwen3(1024, 28, 16, 3072, tied=True),
    "Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, tied=True),
    "Qwen3-4B": _qwen3(2560, 36, 32, 9728, tied=True),
    "Qwen3-8B": _qwen3(4096, 36, 32, 12_288, tied=False),
    # For trying the measurement where nothing else fits.
    "tiny": _qwen3(16, 2, 2, 32, tied=True) | {"vocab_size": 64, "head_dim": 8, "num_key_value_heads": 1},
}


def write_config(folder: Path, shape: str) -> Path:
    """A model folder that has a config alone, which is enough to estimate."""
    target = folder / shape
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text(json.dumps(SHAPES[shape]))
    return target


def write_random_model(folder: Path, shape: str, device: str) -> Path:
    """The same with random weights in bfloat16 and the tiny pair's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from engine.locations import resolve

    torch.manual_seed(0)
    values = {name: value for name, value in SHAPES[shape].items() if name != "model_type"}
    config = AutoConfig.for_model("qwen3", **values)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    target = folder / shape
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(Path(resolve("builtin:tiny")) / "models" / "teacher").save_pretrained(target)
    return target
