"""A copy of a model for a vLLM server on a CPU, whose head is not tied to its embeddings.

There, vLLM lays out a tied head once and keeps that layout when the embeddings change: rollouts would come from a student that
never existed.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from engine.model_files import open_module, open_tokenizer
from engine.model_spec import ModelSpec
from engine.served_weights import add_tied_weights


def write_untied(spec: ModelSpec, folder: Path) -> None:
    """Write model and tokenizer into a new folder, every weight under its own name; RunError("bad_model") if there is no such model."""
    tokenizer = open_tokenizer(spec, "student")
    module = open_module(spec, "student", tokenizer, torch.float32)
    module.save_pretrained(folder)
    add_tied_weights(folder, module)
    tokenizer.save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}, indent=2) + "\n")
