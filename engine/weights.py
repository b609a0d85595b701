"""A model's weights as files: an ordinary Hugging Face folder that transformers opens, whatever was trained.

With LoRA the adapter lies merged into the weights of the folder, and beside them in `adapter/` as a plain peft folder. At
the top an adapter_config.json would make transformers look for the base instead of opening the folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from engine.adapter import ADAPTER_FOLDER
from engine.errors import RunError
from engine.language_model import LanguageModel

# Merged anew on another machine, a weight may differ by rounding; a weight of another base differs by far more.
_BASE_TOLERANCE = 1e-3


def save_weights(folder: Path, model: LanguageModel) -> None:
    """Write config and weights into a folder, with LoRA merged ones in the adapter's precision and the adapter itself."""
    if model.adapter is None:
        model.module.save_pretrained(folder)
        return
    model.module.save_pretrained(folder, state_dict=model.state_dict())
    config = folder / "config.json"
    # transformers opens a folder in the dtype of its config, which is that of the base: a low one would round the adapter away.
    values = json.loads(config.read_text()) | {"dtype": "float32"}
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    model.adapter.save(folder / ADAPTER_FOLDER)


def restore_weights(folder: Path, model: LanguageModel) -> None:
    """Put the weights of a folder into a model, with LoRA those of the adapter; RunError("bad_checkpoint") if they do not fit."""
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    module = model.module
    mine = model.state_dict()
    wanted = {name: tensor.shape for name, tensor in mine.items()}
    found = {name: tensor.shape for name, tensor in weights.items()}
    tied = set(getattr(module, "all_tied_weights_keys", None) or {})
    differing = [name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)]
    if set(differing) - (tied - found.keys()):
        raise RunError("bad_checkpoint", f"{folder} does not fit the student: {sorted(differing)[:3]} differ.")
    if model.adapter is None:
        module.load_state_dict(weights, strict=False)
        module.tie_weights()
        return
    model.adapter.load(folder / ADAPTER_FOLDER)
    _check_base(folder, weights, model.state_dict())


def _check_base(folder: Path, saved: dict[str, torch.Tensor], merged: dict[str, torch.Tensor]) -> None:
    """RunError("bad_checkpoint") when the base that is loaded is not the one under the saved adapter."""
    for name, tensor in saved.items():
        found = merged[name].cpu().to(tensor.dtype)
        if not torch.allclose(found, tensor, rtol=_BASE_TOLERANCE, atol=_BASE_TOLERANCE):
            raise RunError(
                "bad_checkpoint",
                f"{folder} was trained on another base ({name} differs); restore the model at student.path or start afresh.",
            )
