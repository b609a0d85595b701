"""GGUF files as clean models: dequantized float weights, a plain config, and the tokenizer that the file carries.

transformers opens such a file only with a further package, and then refuses to save the model, as it calls it quantized.
So its parser and its table of names are used, and the weights go into a model of their own.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

_MAX_NAMED = 3  # missing tensors that a message names


class UnreadableGguf(ValueError):
    """A GGUF file cannot become a model; the text says why."""


def read_gguf(path: Path, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype) -> PreTrainedModel:
    """The model in a GGUF file, dequantized to `dtype`; saving it gives an ordinary Hugging Face folder.

    Raises UnreadableGguf when it lacks weights or the package that reads it is not installed.
    """
    require_gguf()
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    with torch.device("meta"):  # names and shapes alone
        outline = AutoModelForCausalLM.from_config(config)
    state: dict[str, Any] = load_gguf_checkpoint(
        str(path), return_tensors=True, model_to_load=outline, torch_dtype=dtype
    )["tensors"]
    model = _filled(config, state, dtype)
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    for name, token_id in special.items():
        setattr(model.config, name, token_id)
    model.generation_config = GenerationConfig(**special)
    return model


def require_gguf() -> None:
    """Raises UnreadableGguf when the package that parses GGUF files is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise UnreadableGguf("reading it needs the package gguf; install it with pip install 'incipit[real]'")


def _filled(config: Any, state: dict[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    found = model.load_state_dict(state, strict=False)
    model.tie_weights()
    tied = {name for name in found.missing_keys if _is_tied(model, name, state)}
    missing = sorted(set(found.missing_keys) - tied)
    if missing or found.unexpected_keys:
        what = "lacks" if missing else "has unknown"
        names = missing or sorted(found.unexpected_keys)
        raise UnreadableGguf(
            f"it {what} {len(names)} tensors, {', '.join(names[:_MAX_NAMED])} first; get a complete copy"
        )
    return model


def _is_tied(model: PreTrainedModel, name: str, state: dict[str, Any]) -> bool:
    """Whether a weight is that of another name which the file has."""
    weights = model.state_dict(keep_vars=True)
    return any(weights[other] is weights[name] for other in state if other in weights)
